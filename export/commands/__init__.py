"""The commands of edge-export, one module each: `add_parser(subparsers)` and what it runs."""
