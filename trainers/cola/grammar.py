"""An acceptability corpus from a grammar of our own, so that the CoLA experiment runs without CoLA.

The label of a sentence is known because the sentence was built that way. Every phenomenon below is a
function that draws words and returns a `Pair`: sentences that obey one rule of English, and the same sentences
with that rule broken.

    >>> from random import Random
    >>> pair = reflexive(Draw(Random(7)))
    >>> pair.acceptable[0], pair.broken[0]
    ('The man mentioned himself.', 'The man mentioned herself.')

The files have CoLA's four columns: source (here the phenomenon), label, the author's mark ('' or '*'), sentence.
Of every 5 sentences 3 are acceptable (CoLA: about 7 of 10). Meaning is not judged: a pilot may devour a lamp.

Source:
    The format: Warstadt, Singh and Bowman, "Neural Network Acceptability Judgments", 2019. The idea of labels
    from minimal pairs: Warstadt et al., "BLiMP", 2020. No sentence is taken from either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from itertools import cycle, islice
from random import Random
from typing import Literal, NamedTuple, TypeVar

Number = Literal["singular", "plural"]
Gender = Literal["masculine", "feminine", "neutral"]

TRAIN_SIZE = 640  # 20 batches of 32
DEV_SIZE = 400
ACCEPTABLE_SHARE = 0.6

_TRAIN_SEED = 1
_DEV_SEED = 2
_DRAWS = 10_000  # tries to find one more new sentence before giving up


class Example(NamedTuple):
    """One line of a CoLA file."""

    phenomenon: str
    label: int
    mark: str
    sentence: str


class Pair(NamedTuple):
    """Sentences that obey a phenomenon's rule, and sentences that break it and nothing else."""

    acceptable: tuple[str, ...]
    broken: tuple[str, ...]


# --- The words ----------------------------------------------------------------------------------------------


class Noun(NamedTuple):
    """A countable noun; all begin with a consonant sound, so that "a" is always right."""

    singular: str
    plural: str
    gender: Gender

    def form(self, number: Number) -> str:
        """Return the singular or the plural."""
        return self.singular if number == "singular" else self.plural


class Verb(NamedTuple):
    """The five forms of a verb: buy, buys, bought, bought, buying."""

    base: str
    third: str
    past: str
    participle: str
    ing: str

    def present(self, number: Number) -> str:
        """Return the form that agrees with a third-person subject."""
        return self.third if number == "singular" else self.base


class NounPhrase(NamedTuple):
    """A noun phrase and the features that verbs and pronouns agree with."""

    text: str
    number: Number
    gender: Gender


class Pronoun(NamedTuple):
    """A personal pronoun in the two cases that English still tells apart."""

    nominative: str
    accusative: str


def _nouns(gender: Gender, text: str) -> tuple[Noun, ...]:
    """Read "boy man/men": a regular plural is the word with s."""
    words = (word.partition("/") for word in text.split())
    return tuple(Noun(singular, plural or singular + "s", gender) for singular, _, plural in words)


def _verbs(text: str) -> tuple[Verb, ...]:
    """Read one verb a line, its five forms in order."""
    return tuple(Verb(*line.split()) for line in text.strip().splitlines())


MEN = _nouns("masculine", "boy man/men king father brother waiter")
WOMEN = _nouns("feminine", "girl woman/women queen mother sister waitress/waitresses")
PROFESSIONS = _nouns("neutral", "teacher student doctor lawyer pilot singer farmer writer guest child/children")
PEOPLE = MEN + WOMEN + PROFESSIONS
THINGS = _nouns(
    "neutral", "book letter car picture sandwich/sandwiches vase lamp bicycle hat knife/knives box/boxes key"
)
PLACES = _nouns("neutral", "garden kitchen park house school library/libraries museum station")
NAMES: dict[Gender, tuple[str, ...]] = {
    "masculine": ("John", "Bill", "Peter", "David", "Tom"),
    "feminine": ("Mary", "Sue", "Jane", "Anna", "Linda"),
}
REFLEXIVES: dict[Gender, str] = {"masculine": "himself", "feminine": "herself"}
PRONOUNS = tuple(Pronoun(*pair.split()) for pair in ("I me", "he him", "she her", "we us", "they them"))

MOOD = ("tired", "happy", "sick", "famous", "clever", "proud", "rich", "quiet")  # of people
LOOK = ("red", "new", "cheap", "heavy", "beautiful", "dirty", "small", "green")  # of things
MANNER = ("quickly", "slowly", "carefully", "quietly")
TIME = ("yesterday", "today", "recently", "again")
NEAR = ("near", "behind", "beside")
MODALS = ("will", "can", "must", "should", "might")

# No object, ever; and none is also a mass noun, as "sleep" is: "wanted sleep" is no mistake.
INTRANSITIVE = _verbs("""
    wait waits waited waited waiting
    arrive arrives arrived arrived arriving
    smile smiles smiled smiled smiling
    sneeze sneezes sneezed sneezed sneezing
    fall falls fell fallen falling
    listen listens listened listened listening
    yawn yawns yawned yawned yawning
    faint faints fainted fainted fainting
    snore snores snored snored snoring
    laugh laughs laughed laughed laughing
""")
# Exactly one object, a person; it cannot be left out. No verbs of state: "is liking him" is doubtful.
WITH_PERSON = _verbs("""
    admire admires admired admired admiring
    praise praises praised praised praising
    blame blames blamed blamed blaming
    thank thanks thanked thanked thanking
    ignore ignores ignored ignored ignoring
    mention mentions mentioned mentioned mentioning
    greet greets greeted greeted greeting
    insult insults insulted insulted insulting
""")
# Exactly one object, a thing; it cannot be left out, and no second one fits ("found him the key" would).
WITH_THING = _verbs("""
    destroy destroys destroyed destroyed destroying
    damage damages damaged damaged damaging
    repair repairs repaired repaired repairing
    devour devours devoured devoured devouring
    describe describes described described describing
    discover discovers discovered discovered discovering
    carry carries carried carried carrying
    inspect inspects inspected inspected inspecting
""")
# An object that is a thing; it may be optional, or a second one fit. Past and participle differ in the first six.
IRREGULAR = _verbs("""
    take takes took taken taking
    steal steals stole stolen stealing
    break breaks broke broken breaking
    choose chooses chose chosen choosing
    draw draws drew drawn drawing
    wear wears wore worn wearing
    buy buys bought bought buying
    lose loses lost lost losing
    sell sells sold sold selling
""")
# "gave him the book" and "gave the book to him".
DATIVE = _verbs("""
    give gives gave given giving
    send sends sent sent sending
    show shows showed shown showing
    hand hands handed handed handing
    offer offers offered offered offering
""")
# "explained the book to him", never "explained him the book".
TO_ONLY = _verbs("""
    explain explains explained explained explaining
    describe describes described described describing
    donate donates donated donated donating
    mention mentions mentioned mentioned mentioning
    reveal reveals revealed revealed revealing
""")

SINGULAR_DETERMINERS = ("a", "this", "every")
PLURAL_DETERMINERS = ("these", "those", "some", "several", "two", "three", "many")

_CLOSED_CLASSES = tuple(
    tuple(line.split())
    for line in """
    is are was were be been being
    has have had
    do does did
    to will can must should might
    himself herself themselves
    what who which whose that whether if
    a the this these every several two no any
    ever never not yet
    in near behind beside by to
    somebody everybody nobody
    """.strip().splitlines()
)

_Choice = TypeVar("_Choice")


class Draw:
    """Draws the words and phrases of one pair with a random number generator."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self._names: set[str] = set()

    def one(self, choices: Sequence[_Choice]) -> _Choice:
        """Return one of the choices."""
        return self.random.choice(choices)

    def maybe(self, words: Sequence[str], probability: float = 0.4) -> str:
        """Return one of the words, or nothing."""
        return self.one(words) if self.random.random() < probability else ""

    def number(self) -> Number:
        """Return singular or plural."""
        return self.one(("singular", "plural"))

    def name(self) -> NounPhrase:
        """Return a first name, never the same twice: "Bill blamed Bill" is another rule's mistake."""
        gender: Gender = self.one(("masculine", "feminine"))
        name = self.one([name for name in NAMES[gender] if name not in self._names])
        self._names.add(name)
        return NounPhrase(name, "singular", gender)

    def phrase(self, nouns: Sequence[Noun], number: Number | None = None, adjectives: Sequence[str] = ()) -> NounPhrase:
        """Return a determiner, perhaps an adjective, and one of the nouns."""
        number = number or self.number()
        determiners = SINGULAR_DETERMINERS if number == "singular" else PLURAL_DETERMINERS
        determiner = "the" if self.random.random() < 0.6 else self.one(determiners)
        noun = self.one(nouns)
        adjective = self.maybe(adjectives, 0.2) if adjectives else ""
        return NounPhrase(_join(determiner, adjective, noun.form(number)), number, noun.gender)

    def person(self, number: Number | None = None) -> NounPhrase:
        """Return somebody: a name or a phrase."""
        if number != "plural" and self.random.random() < 0.35:
            return self.name()
        return self.phrase(PEOPLE, number, MOOD)

    def definite(self, nouns: Sequence[Noun], number: Number | None = None) -> NounPhrase:
        """Return a name or "the" and a noun: nobody that a quantifier like "every" would blur."""
        if number != "plural" and self.random.random() < 0.35:
            return self.name()
        number, noun = number or self.number(), self.one(nouns)
        return NounPhrase(_join("the", noun.form(number)), number, noun.gender)

    def thing(self, number: Number | None = None) -> NounPhrase:
        """Return something that is not alive."""
        return self.phrase(THINGS, number, LOOK)

    def place(self) -> str:
        """Return where it happens: "in the garden"."""
        return _join(self.one(("in", *NEAR)), "the", self.one(PLACES).singular)

    def tail(self) -> str:
        """Return what may follow any clause: a place, a time, or nothing."""
        return self.one((self.place(), self.one(TIME), "", ""))

    def action(self) -> tuple[Verb, str]:
        """Return a verb and what it takes: an object, or nothing for an intransitive verb."""
        kind = self.random.randrange(4)
        if kind == 0:
            return self.one(INTRANSITIVE), ""
        if kind == 1:
            return self.one(WITH_PERSON), self.person().text
        return self.one(WITH_THING if kind == 2 else IRREGULAR), self.thing().text

    def clause(self) -> str:
        """Return a short sentence in the past, to be put inside another."""
        verb, rest = self.action()
        return _join(self.person().text, verb.past, rest)


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _say(*parts: str, end: str = ".") -> str:
    text = _join(*parts)
    return text[0].upper() + text[1:] + end


def _ask(*parts: str) -> str:
    return _say(*parts, end="?")


def _other(number: Number) -> Number:
    return "plural" if number == "singular" else "singular"


def _be(number: Number, past: bool = False) -> str:
    if past:
        return "was" if number == "singular" else "were"
    return "is" if number == "singular" else "are"


def _have(number: Number) -> str:
    return "has" if number == "singular" else "have"


def _do(number: Number) -> str:
    return "does" if number == "singular" else "do"


def _predicate(draw: Draw, people: bool = True) -> tuple[str, str]:
    """Return the same predicate for a singular and for a plural subject."""
    kind = draw.random.randrange(4) if people else 0
    if kind == 0:
        adjective, past = draw.one(MOOD if people else LOOK), draw.one((True, False))
        return _join(_be("singular", past), adjective), _join(_be("plural", past), adjective)
    if kind == 1:
        verb, rest = draw.action()
        return _join("has", verb.participle, rest), _join("have", verb.participle, rest)
    if kind == 2:
        verb, where = draw.one(INTRANSITIVE), draw.place()
        return _join(verb.third, where), _join(verb.base, where)
    verb, rest = draw.action()
    return _join(verb.third, rest), _join(verb.base, rest)


# --- The phenomena ------------------------------------------------------------------------------------------


def agreement(draw: Draw) -> Pair:
    """Subject and verb agree: "the boys sleep", not "the boys sleeps"."""
    people = draw.random.random() < 0.75
    subject = draw.person() if people else draw.thing()
    forms = _predicate(draw, people)
    right, wrong = forms if subject.number == "singular" else forms[::-1]
    return Pair((_say(subject.text, right),), (_say(subject.text, wrong),))


def agreement_attractor(draw: Draw) -> Pair:
    """The verb agrees with the head of its subject, not with the noun beside it."""
    number = draw.number()
    between = _other(number) if draw.random.random() < 0.8 else number
    forms = _predicate(draw)
    right, wrong = forms if number == "singular" else forms[::-1]
    head, other = draw.phrase(PEOPLE, number).text, draw.phrase(PEOPLE, between).text
    kind = draw.random.randrange(3)
    if kind == 0:
        subject = _join(head, draw.one(NEAR), other)
        return Pair((_say(subject, right),), (_say(subject, wrong),))
    verb, who = draw.one(WITH_PERSON), draw.one(("that", "who"))
    if kind == 1:
        inside = _join(verb.present(number), other)
        broken_inside = _join(verb.present(_other(number)), other)
    else:
        inside = _join(other, verb.present(between))
        broken_inside = _join(other, verb.present(_other(between)))
    return Pair(
        (_say(head, who, inside, right),),
        (_say(head, who, inside, wrong), _say(head, who, broken_inside, right)),
    )


def determiner(draw: Draw) -> Pair:
    """Determiner and noun agree in number, a singular noun needs a determiner, and one is enough."""
    number = draw.number()
    if number == "singular":
        word, two = draw.one(("a", "this", "that", "every", "each", "one")), "the a"
    else:
        word, two = draw.one(("these", "those", "several", "many", "two", "three", "both", "few")), "these the"
    kind = draw.random.randrange(5)
    if kind == 0:  # things only: "Mother greeted father" is no mistake
        before, thing = _join(draw.person().text, draw.one(WITH_THING).past), draw.one(THINGS)
        return Pair(
            (_say(before, "the", thing.singular), _say(before, word, thing.form(number))),
            (_say(before, thing.singular),),
        )
    noun = draw.one(PEOPLE)
    right, wrong = noun.form(number), noun.form(_other(number))
    if kind <= 2:
        verb, rest = draw.action()
        before, after = "", _join(verb.past, rest, draw.maybe(TIME))
    else:
        before, after = _join(draw.person().text, draw.one(WITH_PERSON).past), draw.maybe(TIME)
    return Pair(
        (_say(before, word, right, after),),
        (
            _say(before, word, wrong, after),
            _say(before, word, wrong, after),
            _say(before, two, right, after),
        ),
    )


def transitivity(draw: Draw) -> Pair:
    """Some verbs take no object, some cannot do without one, and none of these takes two."""
    subject, tail = draw.person().text, draw.tail()
    if draw.random.random() < 0.5:
        verb = draw.one(INTRANSITIVE).past
        thing = draw.one((draw.thing(), draw.person())).text
        return Pair((_say(subject, verb, tail),), (_say(subject, verb, thing, tail),))
    person = draw.random.random() < 0.5
    verb = draw.one(WITH_PERSON if person else WITH_THING).past
    thing = draw.person().text if person else draw.thing().text
    second = draw.phrase(THINGS).text
    return Pair(
        (_say(subject, verb, thing, tail),),
        (_say(subject, verb, tail), _say(subject, verb, tail), _say(subject, verb, thing, second)),
    )


def ditransitive(draw: Draw) -> Pair:
    """Three-place verbs: which of them take two bare objects, and what none of them can leave out."""
    subject, receiver, thing = draw.person().text, draw.person().text, draw.thing().text
    kind = draw.random.randrange(3)
    if kind == 0:
        verb = draw.one(DATIVE)
        # "the letter to Bill" and "the key to the house" are one phrase.
        alone = draw.phrase([noun for noun in THINGS if noun.singular not in ("letter", "key")]).text
        broken = [_say(subject, verb.past, receiver, alone, "to", draw.person().text)]
        if verb.base in ("show", "hand"):  # one may give to the poor
            broken.append(_say(subject, verb.past, "to", receiver))
        return Pair(
            (_say(subject, verb.past, receiver, thing), _say(subject, verb.past, thing, "to", receiver)),
            tuple(broken),
        )
    if kind == 1:
        verb = draw.one(TO_ONLY)
        return Pair((_say(subject, verb.past, thing, "to", receiver),), (_say(subject, verb.past, receiver, thing),))
    where = _join(draw.one(("in", *NEAR)), draw.phrase(THINGS).text)  # not "on": one puts on a hat
    return Pair((_say(subject, "put", thing, where),), (_say(subject, "put", thing), _say(subject, "put", where)))


def clause_complement(draw: Draw) -> Pair:
    """Verbs choose the clause they take: that, whether, with or without a person told."""
    subject, clause, person = draw.person().text, draw.clause(), draw.name().text
    kind = draw.random.randrange(4)
    if kind == 0:
        verb = draw.one(("thought", "hoped", "claimed", "assumed"))
        return Pair(
            (_say(subject, verb, "that", clause), _say(subject, verb, clause)),
            (_say(subject, verb, person, "that", clause), _say(subject, verb, "whether", clause)),
        )
    if kind == 1:
        return Pair(
            (_say(subject, "wondered", draw.one(("whether", "if")), clause),),
            (_say(subject, "wondered", clause), _say(subject, "wondered", person, "whether", clause)),
        )
    if kind == 2:
        verb = draw.one(("told", "convinced", "persuaded"))
        return Pair((_say(subject, verb, person, "that", clause),), (_say(subject, verb, "that", clause),))
    verb = draw.one(("seemed", "appeared"))
    action, rest = draw.action()
    return Pair(
        (_say("it", verb, "that", clause), _say(subject, verb, "to", action.base, rest)),
        (_say(subject, verb, "that", clause), _say("it", verb, subject, "to", action.base, rest)),
    )


def infinitive(draw: Draw) -> Pair:
    """The form of the second verb: wanted to sleep, enjoyed sleeping, made him sleep, forced him to sleep."""
    subject, person = draw.person().text, draw.person().text
    verb, rest = draw.action()
    to_base, base = _join("to", verb.base, rest), _join(verb.base, rest)
    kind = draw.random.randrange(4)
    if kind == 0:
        start = _join(subject, draw.one(("wanted", "tried", "decided", "refused", "planned")))
        return Pair(
            (_say(start, to_base),),
            (_say(start, base), _say(start, "to", verb.past, rest), _say(start, "to", verb.ing, rest)),
        )
    if kind == 1:
        start = _join(subject, draw.one(("enjoyed", "avoided", "finished")))
        return Pair((_say(start, verb.ing, rest),), (_say(start, to_base), _say(start, base)))
    if kind == 2:
        start = _join(subject, draw.one(("made", "let")), person)
        return Pair((_say(start, base),), (_say(start, to_base), _say(start, "to", verb.ing, rest)))
    start = _join(subject, draw.one(("forced", "allowed", "wanted", "persuaded")), person)
    return Pair((_say(start, to_base),), (_say(start, base), _say(start, "to", verb.past, rest)))


def _reflexive(phrase: NounPhrase) -> str:
    return "themselves" if phrase.number == "plural" else REFLEXIVES[phrase.gender]


def reflexive(draw: Draw) -> Pair:
    """A reflexive agrees in number and gender with the subject of its own clause."""
    verb, kind = draw.one(WITH_PERSON).past, draw.random.randrange(4)
    subject = draw.definite(MEN + WOMEN)
    right = _reflexive(subject)
    wrong = draw.one([word for word in ("himself", "herself", "themselves") if word != right])
    if kind <= 1:
        return Pair((_say(subject.text, verb, right),), (_say(subject.text, verb, wrong),))
    # Somebody else's reflexive: the other one agrees with ``wrong`` but is not the subject of this clause.
    number: Number = "plural" if wrong == "themselves" else "singular"
    other = draw.phrase(MEN if wrong == "himself" else WOMEN, number).text
    if kind == 2:
        start = _join(other, draw.one(("said", "thought", "hoped")), "that")
        return Pair(
            (_say(start, subject.text, verb, right),),
            (_say(start, subject.text, verb, wrong), _say(start, wrong, verb, subject.text)),
        )
    head = _join("the", draw.one(MEN if right == "himself" else WOMEN).form(subject.number))
    near, clause = _join(draw.one(NEAR), other), _join("that", other, draw.one(WITH_PERSON).past)
    start = _join(head, draw.one((near, clause)))
    return Pair((_say(start, verb, right),), (_say(start, verb, wrong),))


def filler_gap(draw: Draw) -> Pair:
    """A question word or a relative clause goes with exactly one gap."""
    subject, thing = draw.person().text, draw.phrase(THINGS).text
    verb = draw.one(WITH_THING)
    kind = draw.random.randrange(5)
    what = draw.one(("what", _join("which", draw.one(THINGS).singular)))
    if kind == 0:
        tail = draw.maybe(TIME)
        return Pair(
            (_ask(what, "did", subject, verb.base, tail),),
            (_ask(what, "did", subject, verb.base, thing, tail), _ask(what, subject, "did", verb.base, tail)),
        )
    if kind == 1:
        start = _join(draw.name().text, draw.one(("knew", "forgot", "remembered")))
        return Pair(
            (_say(start, what, subject, verb.past), _say(start, "that", subject, verb.past, thing)),
            (_say(start, what, subject, verb.past, thing), _say(start, "that", subject, verb.past)),
        )
    if kind == 2:
        start = _join(what, "did", draw.name().text, draw.one(("say", "think", "claim")), "that", subject)
        return Pair((_ask(start, verb.past),), (_ask(start, verb.past, thing),))
    if kind == 3:
        people = draw.random.random() < 0.5
        head = draw.phrase(PEOPLE if people else THINGS)
        verb = draw.one(WITH_PERSON if people else WITH_THING)
        pronoun = ("him" if head.gender == "masculine" else "her") if people else "it"
        pronoun = "them" if head.number == "plural" else pronoun
        start = _join(head.text, "that", subject, verb.past)
        end = _join(_be(head.number, past=True), draw.one(MOOD if people else LOOK))
        return Pair((_say(start, end),), (_say(start, pronoun, end),))
    # That-trace: a subject gap cannot follow "that".
    start = _join("who did", subject, draw.one(("say", "think", "claim")))
    end = _join(verb.past, thing)
    return Pair((_ask(start, end),), (_ask(start, "that", end),))


def island(draw: Draw) -> Pair:
    """Nothing is moved out of an island; the same clause is fine as a yes-no question."""
    subject, person = draw.person().text, draw.name().text
    verb, thing = draw.one(WITH_THING), draw.thing().text
    what = draw.one(("what", _join("which", draw.one(THINGS).singular)))
    kind = draw.random.randrange(6)
    if kind == 0:  # an embedded question
        start = _join("did", subject, "wonder whether", person, verb.past)
        bridge = _join(what, "did", subject, draw.one(("say", "think")), "that", person, verb.past)
        return Pair((_ask(start, thing), _ask(bridge)), (_ask(what, start),))
    if kind == 1:  # the clause of a noun
        noun = draw.one(("claim", "rumor", "story"))
        start = _join("did", subject, draw.one(("believe", "hear")), "the", noun, "that", person, verb.past)
        return Pair((_ask(start, thing),), (_ask(what, start),))
    if kind == 2:  # a relative clause
        start = _join("did", subject, draw.one(WITH_PERSON).base, draw.phrase(PEOPLE).text, "that", verb.past)
        return Pair((_ask(start, thing),), (_ask(what, start),))
    if kind == 3:  # one half of a coordination
        start = _join("did", subject, verb.base)
        other = draw.phrase(THINGS).text
        return Pair(
            (_ask(start, other, "and", thing), _ask(what, start)),
            (_ask(what, start, other, "and"), _ask(what, start, "and", other)),
        )
    if kind == 4:  # an adjunct clause
        link = draw.one(("because", "before", "after"))
        start = _join("did", subject, draw.one(INTRANSITIVE).base, link, person, verb.past)
        return Pair((_ask(start, thing),), (_ask(what, start),))
    whose, noun = draw.one(("which", "whose")), draw.one(THINGS).singular  # the left branch of a noun phrase
    start = _join("did", subject, verb.base)
    return Pair((_ask(whose, noun, start),), (_ask(whose, start, noun),))


def polarity(draw: Draw) -> Pair:
    """Ever, any and yet need a negation, a question or the like above them."""
    verb, rest = draw.action()
    person, noun = draw.definite(PEOPLE), draw.one(PEOPLE)
    have, ever = _have(person.number), _join("ever", verb.participle, rest)
    kind = draw.random.randrange(5)
    if kind == 0:
        every, somebody = draw.one(("the", "every", "this")), draw.one(("somebody", "everybody"))
        return Pair(
            (
                _say("no", noun.singular, "has", ever),
                _say("nobody has", ever),
                _say("only", draw.name().text, "has", ever),
            ),
            (_say(every, noun.singular, "has", ever), _say(somebody, "has", ever)),
        )
    if kind == 1:
        many = draw.one(("many", "some", "these"))
        return Pair(
            (_ask(have, person.text, ever), _say("few", noun.plural, "have", ever)),
            (_say(person.text, have, ever), _say(many, noun.plural, "have", ever)),
        )
    if kind == 2:
        verb, things = draw.one(WITH_THING + IRREGULAR), _join("any", draw.one(THINGS).plural)
        somebody = draw.one(("somebody", "everybody"))
        return Pair(
            (
                _say(person.text, "did not", verb.base, things),
                _ask("did", person.text, verb.base, things),
                _say("nobody", verb.past, things),
            ),
            (_say(person.text, verb.past, things), _say(somebody, verb.past, things)),
        )
    if kind == 3:  # the negation must stand above "ever", not inside a relative clause
        other = _join(draw.one(PEOPLE).singular, draw.one(WITH_PERSON).third, "has", ever)
        return Pair((_say("no", noun.singular, "that the", other),), (_say("the", noun.singular, "that no", other),))
    end = _join(verb.participle, rest, "yet")
    return Pair((_say(person.text, have, "not", end), _ask(have, person.text, end)), (_say(person.text, have, end),))


def auxiliary(draw: Draw) -> Pair:
    """Each auxiliary asks for one form of the next verb, they come in one order, and "not" needs one."""
    subject = draw.person()
    verb, rest = draw.action()
    have, be, do = _have(subject.number), _be(subject.number), _do(subject.number)
    modal, text = draw.one(MODALS), subject.text
    kind = draw.random.randrange(6)
    if kind == 0:
        start = _join(text, have, draw.maybe(("not", "never")))
        wrong = verb.base if verb.past == verb.participle else verb.past
        return Pair((_say(start, verb.participle, rest),), (_say(start, wrong, rest), _say(start, verb.ing, rest)))
    if kind == 1:
        start = _join(text, be, draw.maybe(("not",)))
        return Pair((_say(start, verb.ing, rest),), (_say(start, verb.base, rest), _say(start, verb.third, rest)))
    if kind == 2:
        start = _join(text, modal, draw.maybe(("not", "never")))
        return Pair(
            (_say(start, verb.base, rest),),
            (_say(start, verb.past, rest), _say(start, verb.ing, rest), _say(start, "to", verb.base, rest)),
        )
    if kind == 3:
        did = draw.one((do, "did"))
        start = _join(did, text)
        return Pair(
            (_say(text, did, "not", verb.base, rest), _ask(start, verb.base, rest)),
            (
                _say(text, did, "not", verb.past, rest),
                _say(text, "not", verb.past, rest),
                _ask(start, verb.past, rest),
                _ask(start, verb.ing, rest),
            ),
        )
    if kind == 4:
        return Pair(
            (_say(text, have, "been", verb.ing, rest), _ask(have, text, "been", verb.ing, rest)),
            (
                _say(text, have, "being", verb.ing, rest),
                _say(text, "been", have, verb.ing, rest),
                _say(text, be, "been", verb.ing, rest),
            ),
        )
    modal = draw.one(("will", "should"))  # "can have waited" and "must he have waited?" are doubtful
    return Pair(
        (_say(text, modal, "have", verb.participle, rest), _ask(modal, text, "have", verb.participle, rest)),
        (
            _say(text, modal, "had", verb.participle, rest),
            _say(text, "have", modal, verb.participle, rest),
            _say(text, modal, "have", verb.base, rest),
        ),
    )


def word_order(draw: Draw) -> Pair:
    """Determiner, adjective, noun; subject, verb, object; preposition, noun; no adverb before the object."""
    number = draw.number()
    mood, noun = draw.one(MOOD), draw.one(PEOPLE).form(number)
    thing, person = draw.one(THINGS).form(number), draw.person().text
    verb, tail = draw.one(WITH_THING).past, draw.maybe(TIME)
    kind = draw.random.randrange(4)
    if kind == 0:
        verb = draw.one(INTRANSITIVE).past
        adverb = draw.maybe(("very", "rather"))
        return Pair(
            (_say("the", adverb, mood, noun, verb, tail),),
            (
                _say("the", noun, adverb, mood, verb, tail),
                _say(mood, noun, "the", verb, tail),
                _say(noun, "the", verb, tail),
            ),
        )
    if kind == 1:
        return Pair(
            (_say(person, verb, "the", thing, tail),),
            (
                _say(person, "the", thing, verb, tail),
                _say(verb, person, "the", thing, tail),
                _say(verb, "the", thing, person, tail),
                _say(person, verb, thing, "the", tail),
            ),
        )
    if kind == 2:
        manner = draw.one(MANNER)
        return Pair(
            (_say(person, verb, "the", thing, manner), _say(person, manner, verb, "the", thing)),
            (_say(person, verb, manner, "the", thing), _say(person, verb, "the", manner, thing)),
        )
    verb, preposition, place = draw.one(INTRANSITIVE).past, draw.one(("in", *NEAR)), draw.one(PLACES).singular
    return Pair(
        (_say(person, verb, preposition, "the", place),),
        (
            _say(person, verb, "the", place, preposition),
            _say(person, verb, "the", preposition, place),
            _say(person, preposition, "the", verb, place),
        ),
    )


def passive(draw: Draw) -> Pair:
    """A passive has be and a participle, no object, "by" before its agent, and a transitive verb."""
    people = draw.random.random() < 0.5
    subject = draw.phrase(PEOPLE) if people else draw.thing()
    verb = draw.one(WITH_PERSON if people else WITH_THING + IRREGULAR[:3])
    was, agent, tail = _be(subject.number, past=True), draw.person().text, draw.maybe(TIME)
    by = _join("by", agent)
    broken = [
        _say(subject.text, was, verb.participle, agent, tail),
        _say(subject.text, was, verb.base, by, tail),
        _say(subject.text, was, verb.ing, by, tail),
        _say(subject.text, was, draw.one(INTRANSITIVE).participle, by, tail),
    ]
    if verb.past != verb.participle:
        broken.append(_say(subject.text, was, verb.past, by, tail))
    return Pair(
        (
            _say(subject.text, was, verb.participle, by, tail),
            _say(subject.text, draw.one(MODALS), "be", verb.participle, by),
        ),
        tuple(broken),
    )


def existential(draw: Draw) -> Pair:
    """After "there is" stands an indefinite phrase, and the verb agrees with it."""
    number, past, noun = draw.number(), draw.one((True, False)), draw.one(PEOPLE + THINGS)
    be, wrong_be = _be(number, past), _be(_other(number), past)
    weak = ("a", "no") if number == "singular" else ("some", "several", "many", "two", "three", "no")
    strong = ("the", "every", "each") if number == "singular" else ("the", "most", "both")
    adjective = draw.maybe(MOOD if noun in PEOPLE else LOOK, 0.3)
    right = _join(draw.one(weak), adjective, noun.form(number))
    wrong = _join(draw.one(strong), adjective, noun.form(number))
    where = draw.place()
    return Pair(
        (_say("there", be, right, where), _say("there", be, right, where), _ask(be, "there", right, where)),
        (
            _say("there", be, wrong, where),
            _say("there", be, wrong, where),
            _say("there", _be("singular", past), draw.name().text, where),
            _say("there", wrong_be, right, where),
            _ask(be, "there", wrong, where),
        ),
    )


def case(draw: Draw) -> Pair:
    """A pronoun is nominative as a subject and accusative elsewhere."""
    pronoun, person = draw.one(PRONOUNS), draw.person()
    right, wrong = pronoun.nominative, pronoun.accusative
    verb, rest = draw.action()
    kind = draw.random.randrange(6)
    if kind == 0:
        end = draw.one((_join(verb.past, rest), _join(draw.one(MODALS), verb.base, rest)))
        return Pair((_say(right, end),), (_say(wrong, end),))
    if kind == 1:
        start = _join(person.text, draw.one(("said", "thought", "hoped")), "that")
        return Pair((_say(start, right, verb.past, rest),), (_say(start, wrong, verb.past, rest),))
    right, wrong = wrong, right
    if kind == 2:
        start, end = _join(person.text, draw.one(WITH_PERSON).past), draw.tail()
    elif kind == 3:
        start, end = _join(person.text, draw.one(INTRANSITIVE).past, draw.one(NEAR)), draw.maybe(TIME)
    elif kind == 4:
        start, end = _join(person.text, draw.one(("made", "let"))), _join(verb.base, rest)
    else:
        be = _be(person.number, past=True)
        start, end = _join(person.text, be, draw.one(WITH_PERSON).participle, "by"), draw.maybe(TIME)
    return Pair((_say(start, right, end),), (_say(start, wrong, end),))


PHENOMENA: dict[str, Callable[[Draw], Pair]] = {
    function.__name__: function
    for function in (
        agreement,
        agreement_attractor,
        auxiliary,
        case,
        clause_complement,
        determiner,
        ditransitive,
        existential,
        filler_gap,
        infinitive,
        island,
        passive,
        polarity,
        reflexive,
        transitivity,
        word_order,
    )
}


# --- The corpora --------------------------------------------------------------------------------------------


def corpus(size: int, seed: int, *, exclude: Collection[str] = ()) -> list[Example]:
    """Return labelled sentences in random order, 3 of 5 acceptable, the phenomena in equal parts, none twice.

    Every broken sentence comes with an acceptable one from the same draw, as examples in a linguist's article do;
    the other acceptable ones stand alone.

    Arguments:
        size: How many sentences.
        seed: The same seed gives the same sentences in the same order.
        exclude: Sentences that must not be among them.

    Returns:
        ``size`` examples, ``round(0.6 * size)`` of them acceptable.

    Raises:
        ValueError: ``size`` is negative, or more than the grammar can make.

    Example:
        >>> sum(example.label for example in corpus(10, seed=0))
        6
    """
    if size < 0:
        raise ValueError(f"size is {size}; give the number of sentences, 0 or more")
    random = Random(seed)
    acceptable = round(ACCEPTABLE_SHARE * size)
    seen = set(exclude)
    examples = []
    for index, source in zip(range(acceptable), cycle(PHENOMENA), strict=False):
        with_broken = index < size - acceptable
        sentences = _draw_new(source, random, seen, with_broken=with_broken)
        examples.append(Example(source, 1, "", sentences[0]))
        if with_broken:
            examples.append(Example(source, 0, "*", sentences[1]))
    random.shuffle(examples)
    return examples


def _draw_new(source: str, random: Random, seen: set[str], *, with_broken: bool) -> list[str]:
    """Draw an acceptable sentence, perhaps a broken one too, not among those seen; add them to these."""
    for _ in range(_DRAWS):
        pair = PHENOMENA[source](Draw(random))
        sentences = [random.choice(pair.acceptable)]
        if with_broken:
            sentences.append(random.choice(pair.broken))
        if seen.isdisjoint(sentences):
            seen.update(sentences)
            return sentences
    raise ValueError(f"found no new sentence for {source!r} after {len(seen)}; ask for a smaller size")


@cache
def _splits() -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    train = corpus(TRAIN_SIZE, _TRAIN_SEED)
    dev = corpus(DEV_SIZE, _DEV_SEED, exclude={example.sentence for example in train})
    return tuple(train), tuple(dev)


def splits() -> tuple[list[Example], list[Example]]:
    """Return the shipped train and dev examples, which share no sentence.

    Example:
        >>> train, dev = splits()
        >>> len(train), len(dev)
        (640, 400)
    """
    train, dev = _splits()
    return list(train), list(dev)


def grammatical(size: int, seed: int) -> list[str]:
    """Return acceptable sentences to pretrain on: none twice, none of the shipped train and dev examples.

    Arguments:
        size: How many sentences. The grammar has hundreds of thousands; 100,000 is no trouble.
        seed: The same seed gives the same sentences in the same order.

    Raises:
        ValueError: ``size`` is negative, or more than the grammar can make.

    Example:
        >>> len(grammatical(5, seed=0))
        5
    """
    if size < 0:
        raise ValueError(f"size is {size}; give the number of sentences, 0 or more")
    random = Random(seed)
    train, dev = _splits()
    seen = {example.sentence for example in train + dev}
    sources = islice(cycle(PHENOMENA), size)
    sentences = [_draw_new(source, random, seen, with_broken=False)[0] for source in sources]
    random.shuffle(sentences)
    return sentences


def to_tsv(examples: Sequence[Example]) -> str:
    """Return the examples as CoLA writes them: source, label, mark, sentence, tabs between, no header.

    Example:
        >>> to_tsv([Example("case", 0, "*", "Him slept.")])
        'case\\t0\\t*\\tHim slept.\\n'
    """
    return "".join("\t".join((e.phenomenon, str(e.label), e.mark, e.sentence)) + "\n" for e in examples)


def paradigms() -> list[tuple[str, ...]]:
    """Return the groups of words that compete for a place: a word's forms, and the closed classes.

    Example:
        >>> ("buy", "buys", "bought", "bought", "buying") in paradigms()
        True
    """
    verbs = dict.fromkeys(INTRANSITIVE + WITH_PERSON + WITH_THING + IRREGULAR + DATIVE + TO_ONLY)
    nouns = ((noun.singular, noun.plural) for noun in PEOPLE + THINGS + PLACES)
    return [*verbs, *nouns, *((p.nominative.lower(), p.accusative) for p in PRONOUNS), *_CLOSED_CLASSES]


def vocabulary() -> list[str]:
    """Return every token of the grammar in lower case, sorted: the words, the full stop and the question mark.

    The words of the tables are taken from them, those inside the phenomena are collected from many sentences.
    """
    words = {word for group in paradigms() for word in group}
    random = Random(0)
    for phenomenon in PHENOMENA.values():
        for _ in range(2000):
            pair = phenomenon(Draw(random))
            words.update(word for text in pair.acceptable + pair.broken for word in tokens(text))
    return sorted(words)


def tokens(sentence: str) -> list[str]:
    """Split a sentence of this grammar into lower-case words and its final mark.

    Example:
        >>> tokens("Mary slept.")
        ['mary', 'slept', '.']
    """
    return [*sentence[:-1].lower().split(), sentence[-1]]
