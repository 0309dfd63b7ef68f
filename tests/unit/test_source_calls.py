"""Nothing in the source calls what could run code from a file that it reads."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

NEVER = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads"),
    *("shelve.open", "joblib.load", "dill.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "tarfile.open"),
    *("shutil.unpack_archive", "cloudpickle.load", "np.fromregex", "torch.hub.load"),
}
# Calls that are safe with one argument only.
NEEDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "AutoModel.from_pretrained": ("weights_only", True),
}
# The one place that reads TorchScript, after the user said --trust.
TRUSTED = {
    ("mclip_fairseq/formats/openai_clip.py", "torch.jit.load"),  # behind --trust
    ("mclip_fairseq/storage/addresses.py", "tarfile.open"),  # lists members; none is written
    ("preprocess/corpora/tars.py", "tarfile.open"),  # read as a stream; no member is written under its own name
}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def suspicious(name: str, call: ast.Call) -> bool:
    if name in NEVER or name.endswith((".extractall", ".extract")) or name == "torch.jit.load":
        return True
    given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
    if given.get("trust_remote_code") or given.get("shell") or given.get("allow_pickle"):
        return True
    option = NEEDS.get(name)
    return option is not None and given.get(option[0]) is not option[1]


def test_the_source_calls_nothing_that_runs_what_it_reads(repository_root: Path) -> None:
    found, seen = set(), 0
    for folder in ("mclip_fairseq", "preprocess", "examples", "benchmarks"):
        for file in sorted((repository_root / folder).rglob("*.py")):
            for name, call in calls(ast.parse(file.read_text(encoding="utf-8"))):
                seen += 1
                if suspicious(name, call):
                    found.add((file.relative_to(repository_root).as_posix(), name))
    assert found == TRUSTED
    assert seen > 3000


@pytest.mark.parametrize(
    "line",
    ["eval(x)", "torch.load(f)", "np.load(f, allow_pickle=True)", "a.extractall()", "f(x, trust_remote_code=True)"],
)
def test_the_negative_control_of_the_search(line: str) -> None:
    ((name, call),) = calls(ast.parse(line))
    assert suspicious(name, call)
