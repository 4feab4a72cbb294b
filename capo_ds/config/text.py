"""Text of files in whatever encoding it says it has, and YAML without its silent traps."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from capo_ds.config.errors import ConfigError

LFS_POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched
_MARKS = {  # byte order marks, the longest first: UTF-16's begins UTF-32's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decode(content: bytes, name: str) -> str:
    """UTF-8, or what a byte order mark says, or UTF-16 and 32 by their zeros.

    Raises `ConfigError` naming file, line and remedy for any other encoding, such as Latin-1:
    which one it is cannot be known from the bytes.
    """
    encoding = next((told for mark, told in _MARKS.items() if content.startswith(mark)), None)
    encoding = encoding or json.detect_encoding(content[:4])
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{name}, line {line}: byte 0x{content[error.start]:02x} is not {encoding.upper()}; "
            "convert the file, from Latin-1 or Windows-1252 for example: iconv -f cp1252 -t utf-8 "
            "OLD > NEW"
        ) from error


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML document. Raises `ConfigError` in one line, with the place, for what is
    no YAML, more than one document, a key given twice, and numbers that YAML 1.1 would read in
    base 8 or 60."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        what = ", ".join(filter(None, (error.context, error.problem)))
        if "'\\t'" in what:
            what += "; indent with spaces, not with tabs"
        raise ConfigError(f"{name}{line}: not valid YAML: {what}") from error
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # such as a 13th month
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error


def parse_value(text: str, name: str) -> Any:
    """A value that stands alone, as on a command line. Raises `ConfigError` also for signs that
    YAML passes over: a comment, a name for what follows.

    name: of what it stands in.
    """
    remedy = "; put text with such signs in quotes of its own: 'KEY=\"TEXT\"'"
    try:
        value = parse_yaml(text, name)
    except ConfigError as error:
        raise ConfigError(f"{error}{remedy}") from error
    tokens = [token for token in yaml.scan(text) if not isinstance(token, yaml.StreamEndToken)]
    rest = text[tokens[-1].end_mark.index :].strip()
    if rest or any(isinstance(token, yaml.AnchorToken) for token in tokens):
        sign = "# a comment" if rest else "& a name for what follows it"
        raise ConfigError(f"{name}: YAML takes {sign}{remedy}")
    return value


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:  # before merge keys (<<) are resolved: those may be overridden
            if (name := str(key.value)) in seen:
                raise ConstructorError(
                    None,
                    None,
                    f"{name!r} is there twice, first in line {seen[name]}; write it once, with all "
                    "that belongs to it",
                    key.start_mark,
                )
            seen[name] = key.start_mark.line + 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if re.match(r"[-+]?0\d", node.value) or ":" in node.value:
            raise ConstructorError(
                None,
                None,
                f"YAML reads {node.value} in base {60 if ':' in node.value else 8}; write a number "
                "without leading zeros, or text in quotes",
                node.start_mark,
            )
        return super().construct_yaml_int(node)

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        if node.value == "None" and node.style is None:
            raise ConstructorError(
                None,
                None,
                "YAML reads None as a text of four letters; write null, or text in quotes",
                node.start_mark,
            )
        return super().construct_yaml_str(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)
