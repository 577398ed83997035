"""Which campaigns can get in full what they want of a given traffic, whoever decides: an upper bound on any pacing.

Each request can be given to one of the campaigns that its facts let in. So the most that all of them can get together
is a maximum flow, from a source over the campaigns (what each wants) and the kinds of requests (how many came) to a
sink. Where it cannot be all, the minimum cut tells who is short: a campaign on the sink's side of the cut nearest to
the source gets everything in every maximum flow; those on the source's side share too few requests among them. The flow
is scipy's and knows nothing of the decisions.
"""

from collections.abc import Mapping

from adcore.core.adtable import AdTable, bits
from adcore.errors import AdcoreError


def deliverable(table: AdTable, supply: Mapping[tuple[str, int], int], wanted: Mapping[str, int]) -> set[str]:
    """Those of the campaigns in `wanted` (impressions each) that can be delivered in full, all of them together.

    `supply` are requests by placement and the mask of campaigns that dates and targeting let in.
    """
    try:
        import numpy as np
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import breadth_first_order, maximum_flow
    except ImportError as error:
        raise AdcoreError(
            f"what can be delivered at most takes scipy ({error}): pip install 'adcore[simulate]'"
        ) from None
    campaigns = {campaign_id: number for number, campaign_id in enumerate(wanted, start=1)}
    kinds = [(key, count) for key, count in supply.items() if count]
    sink = 1 + len(campaigns) + len(kinds)
    edges = [(0, campaigns[name], number) for name, number in wanted.items()]
    for node, ((placement, mask), count) in enumerate(kinds, start=1 + len(campaigns)):
        edges.append((node, sink, count))
        edges += [(campaigns[name], node, count) for name in _takers(table, placement, mask) if name in campaigns]
    starts, ends, capacities = (np.array(column, dtype=np.int32) for column in zip(*edges, strict=True))
    graph = csr_array((capacities, (starts, ends)), shape=(sink + 1, sink + 1))
    residual = graph - maximum_flow(graph, 0, sink).flow
    short = set(breadth_first_order(csr_array(residual > 0), 0, return_predecessors=False).tolist())
    return {name for name, node in campaigns.items() if node not in short}


def _takers(table: AdTable, placement: str, mask: int) -> list[str]:
    """Who can be given such a request: a tier with a campaign that nothing limits leaves none to those below."""
    index = table.placements.get(placement)
    takers: list[str] = []
    for tier in index.tiers if index is not None else ():
        assert index is not None
        here = [index.campaigns[position].id for position in bits(mask & tier)]
        takers += here
        if any(campaign_id not in table.limited for campaign_id in here):
            break
    return takers
