"""`gradus demo`: the whole road on bundled real data."""


def demo() -> None:
    """Walk the whole road on real data: import, generate, mine, audit, release, train, evaluate.

    No GPU, no API key, no network: SciFact, recorded LLM completions and a small embedding model are bundled. Set
    GRADUS_DATA to choose the data folder (default gradus-data). Cut off at any point, run it again and it goes on.
    """
    from app.demo.road import walk

    walk()
