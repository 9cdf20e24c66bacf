"""The closed word classes of English that the default parser knows, and words that name a class of attributes."""

import re
from typing import Final


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


DETERMINERS: Final = _set(
    "a an the this that these those some any each every another other his her its their my our your no one two three "
    "four five six seven eight nine ten several many few multiple both various"
)
# Longest first where several words make one relation; the value is the relation's name.
PHRASES: Final = {
    "to the left of": "left of",
    "on the left of": "left of",
    "to the right of": "right of",
    "on the right of": "right of",
    "left of": "left of",
    "right of": "right of",
    "in front of": "in front of",
    "on top of": "on top of",
    "next to": "next to",
    "close to": "near",
    "in between": "between",
    "out of": "out of",
    "filled with": "with",
    "full of": "with",
    "along with": "with",
    "as well as": "and",
}
PREPOSITIONS: Final = _set(
    "of in on at with without by near beside behind below above under underneath beneath over across along around "
    "against through inside outside into onto from to toward towards between among amid during for like next after "
    "before about atop upon within down up off past via"
)
LINKS: Final = PREPOSITIONS | frozenset(PHRASES.values())
CONJUNCTIONS: Final = _set("and or but plus while as , . ; :")
COPULAS: Final = _set("is are was were be being been am has have had having that's it's there's")
PRONOUNS: Final = _set("he she it they him them who whom which what there here someone people's")
ADVERBS: Final = _set("very quite also just really so too only still together away not almost mostly")

# "a photo of", "there is": what frames a caption without being in the picture.
FRAME: Final = re.compile(
    r"^(?:(?:an?|the|this is an?|this is the)\s+)?(?:close[- ]?up\s+)?"
    r"(?:(?:black and white|stock|digital|colou?r)\s+)?"
    r"(?:photo(?:graph)?|picture|image|view|shot|close-?up|illustration|drawing|painting|rendering|portrait|scene)"
    r"\s+(?:of|showing|with)\s+|^(?:there (?:is|are)|this is|these are|here is|here are|it is|we see)\s+"
)
WORDS: Final = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*|[,.;:]")

# A class of attributes is learnt from the captions; a few words that everyone uses only give it its name.
NAMES: Final = {
    "colour": _set(
        "black white red green blue yellow brown orange pink purple violet grey gray silver gold golden beige cyan "
        "teal turquoise magenta maroon navy lime olive tan cream ivory crimson scarlet indigo lavender lilac peach "
        "mint charcoal khaki coral salmon amber burgundy blonde"
    ),
    "pattern": _set(
        "striped plain dotted spotted checked checkered chequered floral plaid patterned speckled wavy paisley "
        "zigzag marbled camouflage tartan chevron"
    ),
    "size": _set("small large big little tiny huge tall short long giant miniature medium wide narrow"),
    "material": _set(
        "wooden metal plastic glass leather stone brick concrete cotton woollen denim silk paper ceramic steel iron "
        "marble wicker rubber knitted velvet"
    ),
    "age": _set("young old elderly new ancient vintage antique modern"),
    "shape": _set("round square rectangular circular oval triangular curved pointed flat conical"),
    "sleeve": _set("sleeveless long-sleeved short-sleeved long-sleeve short-sleeve strapless"),
}
