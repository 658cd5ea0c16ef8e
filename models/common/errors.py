"""The one error of this folder's scripts."""


class PackagingError(SystemExit):
    """What was given, or what came of it, is not what a worker may be given. Nothing was put in its place."""
