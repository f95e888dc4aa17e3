"""``python -m msa_model`` is ``msa``."""

import sys

if __name__ == "__main__":
    try:
        from .cli import main

        code = main()
    except KeyboardInterrupt:  # before or after what `main` watches
        print("msa: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
