"""Byte-level BPE in plain Python: every digit alone, then the words of GPT-2, then merges in the order of their list.

Written from the rules, without a library for regular expressions of Unicode or for tokenizers.
"""

import itertools
import unicodedata

CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
# Unicode's White_Space.
SPACES = {chr(code) for code in (*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B))}
SPACES |= {chr(code) for code in (0x2028, 0x2029, 0x202F, 0x205F, 0x3000)}


def byte_characters():
    """Returns the printable character that stands for each byte: itself, or one from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def kind_of(character):
    """Returns "space", "L" for letters, "N" for numbers, or "other"."""
    if character in SPACES:
        return "space"
    first = unicodedata.category(character)[0]
    return first if first in "LN" else "other"


def words_of(text):
    """Returns the pieces within which bytes are merged."""
    words, segment = [], ""
    for character in text:
        if kind_of(character) == "N":
            words += [*_words_without_digits(segment), character]
            segment = ""
        else:
            segment += character
    return words + _words_without_digits(segment)


def _words_without_digits(text):
    words, start = [], 0
    while start < len(text):
        stop = _end_of_word(text, start)
        words.append(text[start:stop])
        start = stop
    return words


def _end_of_word(text, start):
    for contraction in CONTRACTIONS:
        if text.startswith(contraction, start):
            return start + len(contraction)
    first = start + (text[start] == " ")
    if first < len(text) and kind_of(text[first]) != "space":
        return _end_of_run(text, first)
    stop = _end_of_run(text, start)
    # The last space of several belongs to what follows.
    return stop if stop == len(text) or stop == start + 1 else stop - 1


def _end_of_run(text, start):
    stop = start
    while stop < len(text) and kind_of(text[stop]) == kind_of(text[start]):
        stop += 1
    return stop


def merged(symbols, ranks):
    """Returns a word after all merges."""
    while pairs := [pair for pair in itertools.pairwise(symbols) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        joined, place = [], 0
        while place < len(symbols):
            if tuple(symbols[place : place + 2]) == best:
                joined.append("".join(best))
                place += 2
            else:
                joined.append(symbols[place])
                place += 1
        symbols = joined
    return symbols


def split_specials(text, specials):
    """Returns pairs (piece, whether it is a special token)."""
    pieces, start = [], 0
    while start < len(text):
        places = [(place, token) for token in specials if (place := text.find(token, start)) >= 0]
        if not places:
            break
        place, token = min(places, key=lambda found: (found[0], -len(found[1])))
        pieces += [(text[start:place], False), (token, True)]
        start = place + len(token)
    return [*pieces, (text[start:], False)]


def tables(tokens, merges):
    """Returns the id of every token, and the rank of every pair; `merges` are strings of two tokens with a space."""
    ids = {token: index for index, token in enumerate(tokens)}
    return ids, {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}


def encode(text, ids, ranks, specials):
    """Returns token ids."""
    characters, found = byte_characters(), []
    for piece, is_special in split_specials(text, specials):
        if is_special:
            found.append(ids[piece])
            continue
        for word in words_of(piece):
            symbols = [characters[byte] for byte in word.encode()]
            found += [ids[symbol] for symbol in merged(symbols, ranks)]
    return found


def decode(ids, tokens, specials):
    """Returns the text of token ids."""
    bytes_of = {character: byte for byte, character in byte_characters().items()}
    content = b""
    for index in ids:
        token = tokens[index]
        content += token.encode() if token in specials else bytes(bytes_of[character] for character in token)
    return content.decode()
