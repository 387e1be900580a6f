"""`python -m athanor` is `athanor`."""

from athanor.cli import main

raise SystemExit(main())
