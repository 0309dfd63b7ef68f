"""Encode units in the actor pool of Ray Data: on the cores or GPUs of this machine, or of a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mclip_fairseq.encoding.units import Budget, Done, Job, Unit, encode_unit
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra

ADDRESS_VARIABLE = "RAY_ADDRESS"
CONNECT_SECONDS = 10.0


class Worker:
    """An actor: loads the model once, then encodes units.

    Args:
        job: see `Job`.
        threads: of torch; the rows of two machines are equal to the bit if these are.
        budget: the actor that counts unreadable inputs.
    """

    def __init__(self, job: Job, threads: int, budget: Any) -> None:
        torch.set_num_threads(threads)
        self.job, self.budget, self.reason = job, budget, ""
        try:
            self.device, self.opened = job.start()
        except (UserError, OSError) as error:  # an actor that fails to start is started again and again
            self.reason = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Encode the unit of a row; errors that a user can fix come back as a sentence."""
        unit: Unit = row["unit"]
        if self.reason:
            return {"done": Done(unit.shard, error=self.reason)}
        try:
            return {"done": encode_unit(unit, self.job, self.opened, self.device, self._allows)}
        except (UserError, OSError) as error:
            return {"done": Done(unit.shard, error=str(error))}

    def _allows(self, shard: int, unreadable: int) -> bool:
        ray = import_extra("ray", "scale")
        return bool(ray.get(self.budget.allows.remote(shard, unreadable)))


@contextlib.contextmanager
def connected() -> Iterator[Any]:
    """Ray: the cluster of RAY_ADDRESS, a cluster that this process has joined already, or a new one on this machine.

    Raises:
        UserError: the cluster cannot be reached, or does not start.
    """
    ray = import_extra("ray", "scale")
    import_extra("ray.data", "scale")
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get(ADDRESS_VARIABLE)
    check_address(address or "")
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises many kinds, and a plain one where a machine is too busy
        reason = " ".join(str(error).split())[:200]
        if address:
            message = (
                f"{ADDRESS_VARIABLE}={address}: cannot be joined ({reason}); check that it runs this version of Ray"
            )
        else:
            message = (
                f"Ray does not start on this machine ({reason}); run the same command again, or without --engine ray"
            )
        raise UserError(message) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Check that something listens at an address: Ray itself would try for minutes.

    Args:
        address: `HOST:PORT` or `ray://HOST:PORT`; words, such as `auto`, name no place and are not checked.

    Raises:
        UserError: nothing does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        if not port.isdecimal():
            raise ValueError("is not HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"{ADDRESS_VARIABLE}={address}: cannot be reached ({error}); check the address and that the cluster runs"
        ) from error


def compute_with_ray(units: Sequence[Unit], job: Job, earlier: int, use_gpu: bool | None) -> Iterator[Done]:
    """Encode units in an actor pool; yields what became of each, in any order.

    A worker that is lost is replaced, and its unit is encoded again. A worker takes one GPU, or as many CPUs as torch
    has threads here, so that its rows are those of this process to the bit.

    Args:
        units: what is missing.
        job: see `Job`.
        earlier: inputs that were skipped before.
        use_gpu: whether workers compute on GPUs; None: if the cluster has any.

    Raises:
        UserError: the cluster cannot be reached, has no GPU, or is lost.
    """
    with connected() as ray:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        if use_gpu and not gpus:
            raise UserError(
                "--device cuda: the Ray cluster has no GPU; leave the option out, or add machines that have"
            )
        on_gpu = gpus > 0 if use_gpu is None else use_gpu
        threads = torch.get_num_threads()
        cpus = 1 if on_gpu else min(threads, max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes()))
        most = gpus if on_gpu else max(1, int(resources.get("CPU", 1)) // cpus)
        limit = job.settings.skip_budget or 0
        budget = ray.remote(num_cpus=0)(Budget).remote(limit, earlier)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units))
        done = rows.map(
            Worker,
            fn_constructor_args=(job, threads, budget),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(units))),
            num_cpus=cpus,
            num_gpus=1 if on_gpu else 0,
        )
        try:
            for row in done.iter_rows():
                yield row["done"]
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, Exception):
                raise error.cause from error  # a bug in our own code keeps its traceback
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"the Ray cluster was lost ({reason}); run the same command again to continue") from error
