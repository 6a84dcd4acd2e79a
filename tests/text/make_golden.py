"""Writes data/golden.json: what `transformers` makes of the conversations and the tokenizer of folders.py.

In an environment with transformers (5.24 wrote what is there), from the root of the repository:
python -m tests.text.make_golden
"""

import json
import tempfile

import transformers

from tests.text import folders


def rendered(tokenizer, messages, variables, add_generation_prompt):
    """Returns the text of a conversation, None where the template refuses it."""
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
        )
    except Exception as error:  # whatever a template raises
        print(f"refused: {error}")
        return None


def main():
    """Renders all conversations with all templates, and encodes and decodes what the first makes of them."""
    found = {"transformers": transformers.__version__, "rendered": {}, "ids": [], "decoded": [], "with_special": []}
    for name in folders.TEMPLATES:
        with tempfile.TemporaryDirectory() as folder:
            folders.write(folder, folders.template(name))
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        found["rendered"][name] = [
            [rendered(tokenizer, messages, variables, flag) for flag in (True, False)]
            for messages, variables in folders.CONVERSATIONS
        ]
    for text, _ in found["rendered"][folders.TEMPLATES[0]]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found["ids"].append(ids)
        for key, is_skipped in (("decoded", True), ("with_special", False)):
            found[key].append(tokenizer.decode(ids, skip_special_tokens=is_skipped, clean_up_tokenization_spaces=False))
    folders.GOLDEN.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
