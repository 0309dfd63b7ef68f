"""Texts that tokenizers read differently if their normalisation, spaces, unknown pieces or limits differ."""

from __future__ import annotations

import unicodedata

PLAIN = (
    "a dog on the beach",
    "ein Hund am Strand",
    "một con chó trên bãi biển",
    "강아지 두 마리가 해변에서",
    "浜辺の犬",
    "海滩上的狗。",
    "كلب على الشاطئ",
    "собака на пляже",
    "สุนัขบนชายหาด",
    "समुद्र तट पर कुत्ता",
    "ძაღლი სანაპიროზე",
    "Çiçekli İstanbul ığŞ",
    "Ὁ κύων ἐπὶ τῆς ἀκτῆς",
    "שָׁלוֹם עוֹלָם",
    "می‌خواهم کتاب‌ها را",
    "አማርኛ ውሻ",
    "ꦲꦏ꧀ꦱꦫ",
    "don't STOP believin' — 50% off!!!",
    "x=1;y={'a':[2,3]}//comment",
    "C:\\path\\to\\file.jpg https://example.org/?q=a&b=c#d",
)
FORMS = (
    *(unicodedata.normalize("NFD", text) for text in (*PLAIN[2:5], *PLAIN[11:14])),
    *(unicodedata.normalize("NFKD", text) for text in (*PLAIN[2:5], "ﬁn ① ㎏ ㍿", *PLAIN[12:14])),
)
SPECIALS = (
    *(
        "<s>",
        "</s>",
        "<pad>",
        "<unk>",
        "<mask>",
        "a<s>b",
        "x </s> y",
        "</s></s>",
        "<s >",
        "<<s>>",
        "s>",
        "<pad",
        "[SEP]",
    ),
    *(
        "<|endoftext|>",
        "[CLS] a [MASK]",
        "<extra_id_0>",
        "a </s",
        "▁",
        "▁▁a",
        "a▁ ▁",
        "a▁b",
        "madeupword0000",
        "@@ a@@ b",
        "##ing",
    ),
)
SPACES = (
    *(
        "",
        " ",
        "   ",
        "\t\n\r",
        "  a  b  ",
        "a\tb\nc\r\nd",
        "a\u00a0b",
        "a\u2003b\u3000c",
        "a\u2028b\u2029c",
        "a\x1fdog",
    ),
    *(
        "a\x85b",
        "a\x0bb\x0cc",
        "\u200ba\u200b",
        "sof\u00adt",
        "\ufeffbom",
        "a\u2060b",
        "a\u200db",
        "a\u200cb",
        "a\u180eb",
    ),
)
ODD = (
    *("\x00", "a\x00b", "\x01\x02\x03", "a\x7fb", "\ufffd", "\ufdd0\ufdd1", "\ue000\uf8ff", "\U000f0000", "\U0010ffff"),
    *(
        "ｽﾅｯﾌﾟﾘﾝｸﾞ",
        "ﾊﾟﾊﾟ ﾊﾞｽ",
        "ＡＢＣ１２３",
        "～〜~",
        "①②③ Ⅷ ℃ ㎡",
        "ﬁ ﬂ ﬃ",
        "ﷺ ﷽",
        "ﻼ ﺍﻠﻠﻪ",
        "½ ⅓ x² H₂O",
        "\u0344",
        "\U0001f23b",
    ),
    *("👨‍👩‍👧‍👦", "👍🏽👍🏿", "🇩🇪🇫🇷🇯🇵", "❤️ ❤", "☠️🏴‍☠️", "🐕" * 40, "𝕳𝖊𝖑𝖑𝖔", "𠀀𠀁𪛖", "𓂀𓃠", "e\u0301\u0301", "\u0301a"),
    *(
        "\u202eabc\u202c",
        "\u2066x\u2069",
        "a" * 3000,
        "word " * 600,
        "日" * 700,
        "-" * 500,
        "1" * 300,
        "!?" * 200,
        "aA" * 100,
    ),
    *("ǅ ǆ Ǆ ŉ", "ß ẞ ſ", "İ i̇ ı", "Å \u212b å", "‐ ‑ – — ― −", "“x” ‘y’ „z“ «w»", "… .. ...", "´ ` ¨ ^ ¸"),
)
HOSTILE = (*PLAIN, *FORMS, *SPECIALS, *SPACES, *ODD)
