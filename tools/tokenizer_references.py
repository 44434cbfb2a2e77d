#!/usr/bin/env python3
"""Writes tests/tokenizers: small tokenizers of every kind, and what the tokenizers package makes of some texts with them.

    python3 tools/tokenizer_references.py [tests/tokenizers]

texts.txt holds one text a line, with backslash escapes (\\\\, \\n, \\xHH for a byte). DIR/expected.txt has a line per call:

    TEXT PAIR MAX_LENGTH TRUNCATION SPECIAL: id id,gap,length id,gap,length:type ...      or     ...: error

TEXT and PAIR are line numbers of texts.txt from 0 (-1: no pair), MAX_LENGTH 0 means no truncation, TRUNCATION 0 longest
first, 1 only first, 2 only second, SPECIAL whether special tokens are added. Offsets are in bytes of the original text: a
token starts `gap` behind the end of that before (special ones, at 0 and 0, not counted); a type of 0 is left out.
albert-json is albert as tokenizer.json, and has the same answers.

code_points.txt holds CRC-32s over all code points in order (no surrogates): for each set of the normalizer's four flags,
bit 0 clean_text, 1 handle_chinese_chars, 2 strip_accents, 3 lowercase, of the code point normalised, in UTF-8, each with a
line feed behind; the same for NFD, NFKD, NFC, NFKC, StripAccents and Lowercase; then of a byte for each: 1 separates words +
2 is a word of its own + 4 is a word character + 8 is a letter + 16 a number for the byte-level expression.
"""

import importlib
import json
import os
import random
import shutil
import struct
import sys
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

SENTENCES = """
The harbour was quiet when the last ferry came in, and nobody waited on the pier.
She read the letter twice, folded it, and put it back into the drawer without a word.
Wonderful film: well acted, beautifully shot, and never a minute too long!
What a waste of an evening; the plot made no sense and the jokes fell flat.
He had been repairing clocks for thirty-one years, and still he was late every day.
Don't believe everything you read, she said, least of all in this newspaper.
Les élèves étaient déjà là, près de la fenêtre, où le garçon mangeait une pêche.
Die Bäckerin grüßte über die Straße: schöne Äpfel, süße Öfen, und ein Ärgernis.
El niño pidió más piñata, ¿verdad? ¡Qué día tan extraño!
Příliš žluťoučký kůň se napil vody a šel spát.
Ο καφές ήταν ζεστός και ο Οδυσσέας γελούσε. ΟΔΥΣΣΕΑΣ
Мой дядя чинил часы и ёлочные игрушки, а йогурт не любил.
今天天气很好，我们去公园散步吧。 東京で寿司を食べました。
한국어 문장은 조금 다르게 나뉩니다.
हिन्दी में लिखना अच्छा लगता है। ไทย ไม่มีช่องว่าง
שָׁלוֹם עֲלֵיכֶם אָמַר הָאִישׁ. السَّلَامُ عَلَيْكُمْ
İstanbul'da ılık bir gün, IĞDIR'da soğuk. Việt Nam có nhiều món ăn ngon.
Prices rose by 3.5% to $1,299.00 (about €1,100) in 2021-22.
""".strip().split("\n")

TEXTS = [
    b"",
    b" ",
    b"The harbour was quiet, wasn't it?",
    b"UPPER lower MiXeD 12,345.67 #hash @at a_b-c",
    b"wonderfully unbelievable clocksmithing",
    "Élève, garçon, près où ÀÉÎÕÜ ñ ç ß ẞ æ ø đ ł".encode(),
    "e\u0301te\u0301 a\u0323\u0302 \u0061\u0302\u0323 q\u0301\u0323\u0334".encode(),
    "\u0301 \u0301a a\u0301\u0301\u0301 \u0344 \u0f73\u0f71 \u1fef\u1fee".encode(),
    "ΟΔΥΣΣΕΑΣ Σ σς \u1f82\u1fc1 Ά\u03b1\u0301".encode(),
    "Ёлка и Йод, ЁЙ".encode(),
    "今天很好，吧。東京 \uf900\ufa1c \U0002f800\U00020000\U0002b820\U0002b920 中a中".encode(),
    "한국어 \u1112\u1161\u11ab 각가 \uac01\u0301".encode(),
    "हिन्दी में ไทย ไม่มี".encode(),
    "שָׁלוֹם עֲלֵיכֶם السَّلَامُ".encode(),
    "İstanbul ılık IĞDIR \u0130\u0307 \u01c4\u01c5\u01c6 \u1e9e".encode(),
    "≠ ≮ \u212b \u2126 \u037e \u0387 \u226e\u0301".encode(),
    b"a\x00b \x00 c\x00 \x01\x1f\x7f \t\r\n x\x0by\x0cz",
    "a\u0085b\u00a0c\u00add \u200be\u200df \u2028g\u2029h\u3000i\ufeffj \ufffdk".encode(),
    "\ue000\U000f0000\U0010ffff\U000e0041 \u0378\U00030000 a\u1abf\u0301b \u0898\u0301".encode(),
    "— “quoted” … ¿qué? «là» 。、「」 € + = ` ^ | ~ ¢ § ¶ · \u166d\U000111c9".encode(),
    "\U0001d15e\U0001d160 \U00016ff0\u0323 \u302e\u0323 \U000110ba \U0001f600 emoji\U0001f44d\U0001f3fd".encode(),
    b"[CLS] in the text [SEP][MASK] [sep] [UNK][PAD]x[SEP]",
    b"[SEP][SE[SEP]] [[MASK]] [MASK",
    b"see <m> there <m><m>  <m>  end <M> x<m>y",
    b"whole <w> but not a<w> or <w>b, _<w> -<w>- <w>\xcc\x81",
    b"abc abcd ab a bcd  bc abcabcd <a><ab><abc>",
    "Été ete ÉTÉ e\u0301te\u0301 xétéx the Film film FILM 中<n>中 <n> <N>".encode(),
    b"a" * 100 + b" " + b"a" * 101 + b" " + b"the" * 40,
    "é".encode() * 100 + b" " + "é".encode() * 101 + b" " + "e\u0301".encode() * 101,
    b"\xff\xfe bad \x80\xc3 \xe2\x82 \xed\xa0\x80 \xf4\x90\x80\x80 \xc0\xaf \xe2\x82[SEP]\xf0\x9f\x98",
    b"\xc3\xa9\xc3 \xe4\xb8\xad\xe4\xb8 e\xcc\x81\xcc",
    ("a" + "\u0301\u0323\u0345\u0334\u302e" * 5 + "b " + "x" + "\u1dfb\U00016ff0\u0334" * 9).encode(),
    b"   leading and trailing   ",
    b"one-two--three...four!!! (five) [six] {seven}",
    b"Don't won't it's we'll I'm they've he'd",
    " ".join(SENTENCES[:3]).encode(),
    b"<s>words</s> <mask>  and<mask>x \xe3\x80\x80<mask> <pad><unk>",
    b"``quoted'' text, 'single' ''' ```a well-known (odd) thing.",
    "\x0b\x01first \x0bdropped \r\n\t ﬁne ﬀ ½ ①② Ａｂｃ　ｄ e\u0301 x\u0301\u0323 \u200bjoined\u200d".encode(),
    "\u0601a \u0915\u094d\u0937 ©\u200d® \u1100\u1161\u11a8 ®\u0301 🇩🇪🇫🇷 👩\u200d💻 ½\u0301".encode(),
    "Ⅷ ㎏ ﷺ ﬃ ² ª ℌ ｶﾞ 각 é \u0958 \u2126 ǆ ſ ẛ\u0323".encode(),
    b"ab" * 40 + b" " + b"the harbour" * 8 + b" 123456789012345678901234567890",
    "\u2581marked\u2581text \u2581\u2581 \u2581".encode(),
    b"   <mask> x \n[MASK] <m>  <mask>",
    b"\n",
    b" \n \n a  b   c \t d 's 't we'Re it'S",
]

BRACKETED = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def special(names):
    return [AddedToken(name, special=True, normalized=False) for name in names]


def train(normalizer, size, prefix="##", longest=100):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=BRACKETED, continuing_subword_prefix=prefix or "##", show_progress=False
    )
    words = [text.decode("utf-8", "ignore") for text in TEXTS[::2]]  # the others shall hold unknown characters
    tokenizer.train_from_iterator(SENTENCES + words, trainer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if prefix == "":  # the trainer cannot do without one
        pieces = sorted({piece.replace("##", "") for piece in vocabulary} - {""})
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
    else:
        # no alphabet of single characters is complete: texts shall hold unknown ones too, and the ids no gap
        pieces = sorted(vocabulary, key=vocabulary.get)
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
    result = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=prefix, max_input_chars_per_word=longest)
    )
    if normalizer is not None:
        result.normalizer = normalizer
    result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return result


def bert_template(tokenizer):
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    return processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ids
    )


def build_json():
    """name -> Tokenizer, saved as tokenizer.json"""
    bert = normalizers.BertNormalizer
    plain = {
        "uncased": bert(True, True, None, True),
        "cased": bert(True, True, None, False),
        "accents": bert(True, True, False, True),
        "stripped": bert(True, True, True, False),
        "nochinese": bert(True, False, None, True),
        "unclean": bert(False, True, None, True),
    }
    result = {}
    for name, normalizer in plain.items():
        tokenizer = train(normalizer, 420)
        tokenizer.add_special_tokens(special(BRACKETED))
        tokenizer.post_processor = bert_template(tokenizer)
        result[name] = tokenizer
    result["bare"] = train(None, 420)

    tokenizer = train(bert(True, True, None, True), 420)
    tokenizer.add_special_tokens(special(BRACKETED[:4]))
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True, normalized=False, special=True)])
    tokenizer.add_tokens([
        AddedToken("<m>", lstrip=True, rstrip=True, normalized=False),
        AddedToken("<w>", single_word=True, normalized=False),
        AddedToken(" <n>", normalized=False),
        AddedToken("<a>", rstrip=True, normalized=False),
        AddedToken("abc", normalized=False),
        AddedToken("abcd", single_word=True, normalized=False),
        AddedToken("bcd", normalized=False),
        AddedToken("é", normalized=False),
    ])
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", tokenizer.token_to_id("[SEP]")), ("[CLS]", tokenizer.token_to_id("[CLS]"))
    )
    result["added"] = tokenizer

    tokenizer = train(bert(True, True, None, True), 420)
    tokenizer.add_special_tokens(special(BRACKETED))
    tokenizer.add_tokens([
        AddedToken("Été", normalized=True),
        AddedToken("FILM", single_word=True, normalized=True),
        AddedToken("<n>", lstrip=True, rstrip=True, normalized=True),
        AddedToken("ab c", normalized=True),
        AddedToken("<M>", lstrip=True, normalized=True),
    ])
    tokenizer.post_processor = bert_template(tokenizer)
    result["normalized"] = tokenizer

    tokenizer = train(bert(True, True, None, True), 300, prefix="", longest=7)
    tokenizer.add_special_tokens(special(BRACKETED))
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]", "[MASK]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:3", pair="[MASK]:1 [CLS]:0 $A:2 [SEP]:1 [SEP]:0 $B:1", special_tokens=ids
    )
    result["odd"] = tokenizer
    return result


ANGLED = ["<s>", "<pad>", "</s>", "<unk>"]

CHARSMAP = {
    "\x01": "", "\x0b": "", "\t": " ", "\n": " ", "\r": " ", "\u00a0": " ", "\u3000": " ", "\u200b": "", "ﬁ": "fi",
    "ﬀ": "ff", "½": "1\u20442", "①": "1", "②": "2", "Ａ": "A", "ｂ": "b", "ｃ": "c", "ｄ": "d", "e\u0301": "é",
    "é": "e\u0301", "®": "(R)", "\u0937": "s", "\u1161": "a", "\u0601": "", "x": "x", "²": "2", "ǆ": "dž", "\u2126": "Ω",
    "今天": "today",
}


def train_bytes(prefix=False, size=420):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=ANGLED, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    return tokenizer


def roberta(tokenizer, prefix):
    ids = [(name, tokenizer.token_to_id(name)) for name in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ids, trim_offsets=True, add_prefix_space=prefix)
    return tokenizer


def change_model(tokenizer, **changes):
    content = json.loads(tokenizer.to_str())
    content["model"].update(changes)
    return Tokenizer.from_str(json.dumps(content))


def build_bpe():
    sequence, pre = normalizers.Sequence, pre_tokenizers
    result = {"bytes": roberta(train_bytes(), False), "bytes-prefix": roberta(train_bytes(True), True)}
    tokenizer = change_model(train_bytes(), ignore_merges=True)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence([pre.Punctuation(), pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    template = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    result["bytes-sequence"] = tokenizer

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = sequence([normalizers.NFKD(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=ANGLED, show_progress=False, limit_alphabet=40,
                                  continuing_subword_prefix="##", end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(SENTENCES, trainer)
    result["characters"] = tokenizer

    trainer = trainers.BpeTrainer(vocab_size=460, show_progress=False, limit_alphabet=40,
                                  special_tokens=ANGLED + [f"<0x{byte:02X}>" for byte in range(256)])
    for name, fuse, last in (("fallback", True, None), ("unfused", False, "<0xE4>")):
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse, byte_fallback=True))
        tokenizer.normalizer = sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=False)
        tokenizer.train_from_iterator(SENTENCES, trainer)
        content = json.loads(tokenizer.to_str())
        content["added_tokens"] = content["added_tokens"][:4]
        if last:
            content["model"]["vocab"]["<no byte>"] = content["model"]["vocab"].pop(last)
        result[name] = Tokenizer.from_str(json.dumps(content))
    return result


def train_unigram(size, normalizer, special_tokens, **options):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=special_tokens, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES[:6] * 2 + SENTENCES, trainer)
    return change_model(tokenizer, **options)


def build_unigram():
    steps = [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Lowercase()]
    tokenizer = train_unigram(260, normalizers.Sequence(steps), ANGLED)
    tokenizer.add_special_tokens(special(ANGLED))
    result = {"unigram": tokenizer}
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    content["model"]["byte_fallback"] = True
    content["normalizer"] = None
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "split": True}
    result["unigram-bytes"] = Tokenizer.from_str(json.dumps(content))
    return result


def write_models(folder):
    """Directories with the vocabulary files of RoBERTa, ALBERT and XLM-RoBERTa, read by transformers."""
    bpe = json.loads(train_bytes(size=400).to_str())["model"]
    plain = train_unigram(230, normalizers.Lowercase(), ["<unk>"])
    pieces = json.loads(plain.to_str())["model"]["vocab"]
    pieces = [(text, score, 1) for text, score in pieces if text[0] not in "<(."]
    flags = {"single_word": False, "rstrip": False, "normalized": True}
    map_of = {
        "bos_token": {"content": "<s>", "lstrip": False, **flags}, "unk_token": "<unk>",
        "mask_token": {"content": "<mask>", "lstrip": True, **flags},
    }
    table, directories = charsmap(CHARSMAP), {}

    def directory(name, **files):
        path = directories[name] = os.path.join(folder, name)
        os.makedirs(path)
        for file, content in files.items():
            with open(os.path.join(path, file.replace("__", ".")), "w", encoding="utf-8") as out:
                out.write(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))
        return path

    merges = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in bpe["merges"]) + "\n"
    directory("merges", vocab__json=bpe["vocab"], merges__txt=merges, special_tokens_map__json=map_of,
              tokenizer_config__json={"do_lower_case": False, "model_max_length": 512})
    path = directory("albert", tokenizer_config__json={"tokenizer_class": "AlbertTokenizer", "mask_token": {
        "__type": "AddedToken", "content": "[MASK]", "lstrip": True, **flags}})
    front = [("<pad>", 0.0, 3), ("<unk>", 0.0, 2), ("[CLS]", 0.0, 3), ("[SEP]", 0.0, 3), ("[MASK]", 0.0, 4),
             ("(", 0.0, 4), (".", 0.0, 4)]
    write_model(os.path.join(path, "spiece.model"), front + pieces, table)
    path = directory("albert-cased", tokenizer_config__json={
        "do_lower_case": False, "keep_accents": True, "add_prefix_space": False, "extra_special_tokens": ["(", "<m>"]})
    write_model(os.path.join(path, "spiece.model"), front + pieces, table)
    path = directory("xlm-roberta", special_tokens_map__json={"mask_token": map_of["mask_token"]})
    front = [("<unk>", 0.0, 2), ("[CLS]", 0.0, 3), ("</s>", 0.0, 3)]  # [CLS] gets an id of its own behind <mask>
    write_model(os.path.join(path, "sentencepiece.bpe.model"), front + pieces, table)
    result = {name: load_directory(path) for name, path in directories.items()}
    os.makedirs(os.path.join(folder, "albert-json"))
    result["albert"].save(os.path.join(folder, "albert-json", "tokenizer.json"), pretty=False)
    result["albert-json"] = load_directory(os.path.join(folder, "albert-json"))
    return result


def write_vocabularies(folder, tokenizers):
    """vocab.txt directories, read by transformers."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import BertTokenizer

    vocabulary = tokenizers["uncased"].get_vocab(with_added_tokens=False)
    pieces = sorted(vocabulary, key=vocabulary.get)
    cased = tokenizers["cased"].get_vocab(with_added_tokens=False)
    cased = [piece for piece in sorted(cased, key=cased.get) if piece != "[MASK]"]
    contents = {
        "vocab": ("\n".join(pieces + [pieces[40]]) + "\n", None),
        "vocab-cased": (
            "\r\n".join(cased + ["", "<unk>", "spaces \u00a0\u3000", "<cls>"]),
            {
                "tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": True,
                "tokenize_chinese_chars": False, "model_max_length": 77, "unk_token": "<unk>",
                "cls_token": {"__type": "AddedToken", "content": "<cls>", "lstrip": True, "rstrip": False,
                              "normalized": False, "single_word": False},
                "extra_special_tokens": ["<m>", "<w>"],
            },
        ),
        "vocab-decoder": (
            "\n".join(pieces),
            {
                "tokenizer_class": "DistilBertTokenizer", "model_max_length": 10**30,
                "added_tokens_decoder": {
                    str(len(pieces)): {"content": "<m>", "lstrip": False, "rstrip": True, "normalized": True,
                                       "single_word": False, "special": False},
                    "4": {"content": "[MASK]", "lstrip": True, "rstrip": False, "normalized": False,
                          "single_word": False, "special": True},
                },
            },
        ),
    }
    result = {}
    for name, (text, config) in contents.items():
        path = os.path.join(folder, name)
        os.makedirs(path)
        with open(os.path.join(path, "vocab.txt"), "w", encoding="utf-8", newline="") as file:
            file.write(text)
        if config:
            with open(os.path.join(path, "tokenizer_config.json"), "w") as file:
                json.dump(config, file, indent=2)
        result[name] = BertTokenizer.from_pretrained(path)._tokenizer
    return result


class Message:
    """A protocol buffer of sentencepiece: as much of it as transformers asks for."""

    def __init__(self, **values):
        self.__dict__.update(values)


class ModelProto:
    """Stands for the class of the sentencepiece package that transformers imports to read spiece.model."""

    @staticmethod
    def fields(data):
        at = 0

        def varint():
            nonlocal at
            value = shift = 0
            while True:
                byte = data[at]
                at += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    return value

        while at < len(data):
            key = varint()
            if key & 7 == 0:
                yield key >> 3, varint()
            else:
                length = {1: 8, 5: 4}.get(key & 7) or varint()
                yield key >> 3, data[at : at + length]
                at += length

    def ParseFromString(self, data):  # noqa: N802
        self.pieces, self.trainer_spec, self.normalizer_spec = [], Message(unk_id=0, model_type=1), Message()
        for field, value in self.fields(data):
            inner = dict(self.fields(value)) if field in (1, 2, 3) else {}
            if field == 1:
                score = struct.unpack("<f", inner[2])[0] if 2 in inner else 0.0
                self.pieces.append(Message(piece=inner[1].decode(), score=score, type=inner.get(3, 1)))
            elif field == 2:
                self.trainer_spec = Message(unk_id=inner.get(40, 0), model_type=inner.get(3, 1))
            elif field == 3:
                self.normalizer_spec = Message(precompiled_charsmap=inner.get(2, b""))


def write_model(path, pieces, charsmap):
    """A sentencepiece model; pieces: (text, score, type)."""

    def varint(value):
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    def block(field, data):
        return varint(field << 3 | 2) + varint(len(data)) + data

    with open(path, "wb") as file:
        for text, score, kind in pieces:
            file.write(block(1, block(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
                             + (varint(3 << 3) + varint(kind) if kind != 1 else b"")))
        file.write(block(2, varint(3 << 3) + varint(1) + varint(40 << 3) + varint(0)))
        file.write(block(3, block(1, b"small") + block(2, charsmap)))


def charsmap(replacements):
    """sentencepiece's table of replacements as a double array, packed tightly."""
    trie = {}
    for key, value in replacements.items():
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = value
    units, texts, starts = {0: 0}, b"", {}
    queue = [(0, 0, trie)]
    for position, label, node in queue:
        base = next(base for base in range(1, 1 << 20) if all(base ^ byte not in units for byte in node))
        units[position] = (position ^ base) << 10 | (256 if 0 in node else 0) | label
        for byte, below in node.items():
            units[base ^ byte] = 0
            if byte:
                queue.append((base ^ byte, byte, below))
            elif below not in starts:
                starts[below] = len(texts)
                texts += below.encode() + b"\0"
        if 0 in node:
            units[base] = starts[node[0]] | 1 << 31
    trie = b"".join(struct.pack("<I", units.get(index, 0)) for index in range(max(units) + 256))
    return struct.pack("<I", len(trie)) + trie + texts


def load_directory(directory, kind=None):
    """What transformers or tokenizers make of a directory, as a Tokenizer."""
    path = os.path.join(directory, "tokenizer.json")
    if os.path.exists(path):
        tokenizer = Tokenizer.from_file(path)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    import transformers

    slow = importlib.import_module("transformers.convert_slow_tokenizer")
    slow.import_protobuf = lambda *_: Message(ModelProto=ModelProto)
    slow.requires_backends = lambda *_: None
    usual = (("vocab.txt", "BertTokenizer"), ("vocab.json", "RobertaTokenizer"), ("spiece.model", "AlbertTokenizer"),
             ("sentencepiece.bpe.model", "XLMRobertaTokenizer"))
    kind = kind or next(kind for file, kind in usual if os.path.exists(os.path.join(directory, file)))
    return getattr(transformers, kind).from_pretrained(directory)._tokenizer


def decode(text):
    """The string that a decoder sees, and where each of its characters starts in the bytes (and the end)."""
    characters, starts, at = "", [], 0
    while at < len(text):
        for length in range(1, 5):
            piece = text[at : at + length].decode("utf-8", "ignore")
            if len(piece) == 1 and piece.encode() == text[at : at + length]:
                break
        else:
            piece = "\ufffd"
            try:
                text[at : at + 4].decode("utf-8")
            except UnicodeDecodeError as error:
                length = error.end - error.start
        characters += piece
        starts.append(at)
        at += length
    assert characters == text.decode("utf-8", "replace")
    return characters, starts + [len(text)]


def describe(encoding, maps):
    """[(id, type, begin, end)], in bytes"""
    result = []
    for index, kind, (begin, end), which in zip(
        encoding.ids, encoding.type_ids, encoding.offsets, encoding.sequence_ids
    ):
        begin, end = (0, 0) if which is None else (maps[which][begin], maps[which][end])
        result.append((index, kind, begin, end))
    return result


def shorten(tokens):
    words, last = [], 0
    for index, kind, begin, end in tokens:
        words.append(f"{index}" + (f",{begin - last},{end - begin}" if begin or end else "") + (f":{kind}" if kind else ""))
        last = end if begin or end else last
    return " ".join(words)


def expected(tokenizer, generator):
    calls = [(text, -1, 0, 0, 1) for text in range(len(TEXTS))]
    calls += [(text, -1, length, 0, 1) for text, length in ((2, 2), (2, 5), (33, 7), (35, 64), (0, 3))]
    short = [index for index, text in enumerate(TEXTS) if len(text) < 150]
    for _ in range(20):
        text, pair = generator.choice(short), generator.choice(short)
        calls.append((text, pair, generator.choice((0, 6, 7, 8, 11, 16, 25)), generator.randrange(3),
                      int(generator.random() < 0.75)))
    lines = []
    for text, pair, length, truncation, with_special in calls:
        if length:
            tokenizer.enable_truncation(length, strategy=("longest_first", "only_first", "only_second")[truncation])
        else:
            tokenizer.no_truncation()
        first, first_map = decode(TEXTS[text])
        second, second_map = decode(TEXTS[pair]) if pair >= 0 else (None, None)
        try:
            encoding = tokenizer.encode(first, second, add_special_tokens=bool(with_special))
            answer = shorten(describe(encoding, (first_map, second_map)))
        except Exception as error:
            assert "runcation" in str(error), error
            answer = "error"
        lines.append(f"{text} {pair} {length} {truncation} {with_special}: {answer}")
    tokenizer.no_truncation()
    return lines


def escape(text):
    out, (characters, starts) = "", decode(text)
    for index, character in enumerate(characters):
        raw = text[starts[index] : starts[index + 1]]
        if character == "\\":
            out += "\\\\"
        elif character == "\n":
            out += "\\n"
        elif raw.decode("utf-8", "replace").encode() != raw or not character.isprintable():
            out += "".join(f"\\x{byte:02x}" for byte in raw)
        else:
            out += character
    return out


def code_points():
    """The lines of code_points.txt."""
    import unicode_tables

    lines = []
    for flags in range(16):
        normalize = normalizers.BertNormalizer(*(bool(flags >> bit & 1) for bit in range(4))).normalize_str
        text = "\n".join(normalize(chr(code)) for code in unicode_tables.CODES) + "\n"
        lines.append(f"{zlib.crc32(text.encode()):08x}")
    for name in ("NFD", "NFKD", "NFC", "NFKC", "StripAccents", "Lowercase"):
        normalize = getattr(normalizers, name)().normalize_str
        text = "\n".join(normalize(chr(code)) for code in unicode_tables.CODES) + "\n"
        lines.append(f"{zlib.crc32(text.encode()):08x}")
    punctuation, whitespace = map(set, unicode_tables.probe_split())
    word = set(unicode_tables.probe_word_characters())
    letters, numbers, _ = map(set, unicode_tables.probe_letters())
    classes = bytes((code in whitespace) + 2 * (code in punctuation) + 4 * (code in word) + 8 * (code in letters)
                    + 16 * (code in numbers) for code in unicode_tables.CODES)
    return lines + [f"{zlib.crc32(classes):08x}"]


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else "tests/tokenizers"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    with open(os.path.join(folder, "texts.txt"), "w", encoding="utf-8") as file:
        file.write("".join(escape(text) + "\n" for text in TEXTS))
    with open(os.path.join(folder, "code_points.txt"), "w") as file:
        file.write("".join(line + "\n" for line in code_points()))
    tokenizers = {**build_json(), **build_bpe(), **build_unigram()}
    for name, tokenizer in tokenizers.items():
        os.makedirs(os.path.join(folder, name))
        tokenizer.save(os.path.join(folder, name, "tokenizer.json"), pretty=False)
        tokenizers[name] = Tokenizer.from_file(os.path.join(folder, name, "tokenizer.json"))
    tokenizers.update(write_vocabularies(folder, tokenizers))
    tokenizers.update(write_models(folder))
    equal = expected(tokenizers.pop("albert-json"), random.Random(1))
    assert equal == expected(tokenizers["albert"], random.Random(1))
    for seed, (name, tokenizer) in enumerate(tokenizers.items()):
        lines = expected(tokenizer, random.Random(seed))
        with open(os.path.join(folder, name, "expected.txt"), "w") as file:
            file.write("\n".join(lines) + "\n")
        unknown = tokenizer.token_to_id("<unk>" if tokenizer.token_to_id("<unk>") else "[UNK]")
        words = [part for line in lines for part in line.split(": ")[1].replace(":", ",").split()]
        share = sum(part.split(",")[0] == str(unknown) for part in words) / len(words)
        print(f"{name}: {tokenizer.get_vocab_size()} ids, {len(lines)} calls, {share:.0%} unknown")


if __name__ == "__main__":
    main()
