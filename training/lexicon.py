"""The ordinary words of the bundled models: an English lexicon sorted by part of speech.

The training text is made from these lists and from :mod:`ioi_helpers.stimuli`; together they are
the vocabulary. Only words are listed that a small grammar can inflect by rule, so that every form
in the vocabulary also occurs in training.
"""

from __future__ import annotations

COUNT_NOUNS = """
actor address adult airport animal answer apartment apple arm army artist author baby back badge
bag bakery ball balloon banana band bank barn baseball basket basketball battle beach bear bed
bell belt bench bicycle bill bird birthday blanket block board boat body bone book boot bottle
bottom bowl box branch bridge brother bucket budget building bus business button cable
cafe cage cake camera camp candle candy car card carpet castle cat cave ceiling cent center chair
chance chapter cheese chicken choice church circle city class classroom client clinic clock cloud
club coach coast coat coffee coin collar collector college color comb committee company computer
concert contract cookie corner cost couch council country course court cousin cow crew crowd cup
curtain customer dance daughter day decision desert desk detail diary dictionary dinner director
dish doctor dog doll dollar donkey door dragon drawer drawing dream dress drink driver drum duck
eagle ear edge editor effort egg elbow election elephant email emperor engine engineer error essay
evening event exam example excuse eye face fact factory family fan farm farmer father feather
fence festival field finger fire fish flag flat floor flower folder food forest fork fox frame
friend frog fruit game garden gate ghost gift giraffe girl glass glove goal goat grandfather
grandmother group guard guest guide guitar gun gym hall hammer hand harbor hat head heart
helmet hill hobby hole holiday home horse hospital hotel hour house husband idea insect
island jacket jail jar jewel job joke journal journey judge juice key king kiss kitchen kite
knee knife knight ladder lake lamb lamp language laptop lawyer leader leaf leg lemon lesson letter
library light line lion list lobby lock lunch machine magazine manager map market match meal
medal meeting member menu message meter mile minister minute mirror mistake model moment monkey
month monument morning mother motor mountain mouse mouth movie museum mushroom nail name napkin
nation neck necklace needle neighbor nephew nest net newspaper night noise nose note notebook
novel number nurse ocean offer office officer onion orange orchestra order oven owl owner package
page painter painting pair palace pan panda paper parcel parent park parrot party path patient
peach pen pencil penguin person phone photo piano picture piece pig pilot pillow pipe place plan
plane planet plant plate player pocket poem poet point pond pool port postcard poster
pot potato present president price prince princess prison prize problem product professor program
project queen question rabbit radio railway rat record report restaurant result ring river road
robot rock roof room rope rose rule ruler sailor salad sandwich scarf scene school scientist screen
season seat secret secretary shadow sheep shelf ship shirt shoe shop shoulder sign singer sink
sister skirt smile snack snake soldier son song soup speaker speech spider spoon square stadium
stage stamp star station statue stone store storm story street student subway suit suitcase table
tailor task taxi teacher team telephone temple tent test theater thief thing ticket tiger tool
tooth topic towel tower town toy train tree trial trip truck tunnel turtle umbrella uncle uniform
university valley van vegetable village violin visitor voice voter wall wallet watch waterfall
week weekend wheel whistle wife window winner winter wizard wolf woman word worker writer year
yard zoo
""".split()

MASS_NOUNS = """
advice air anger art bacon beauty beer bread butter chalk chocolate clay cloth coal confusion
cotton courage cream damage danger dust electricity energy equipment evidence fear fog freedom fuel
fun furniture glue gold grass happiness health help history homework honey hope ice information
ink iron jam joy knowledge leather love luck luggage meat medicine milk money mud music news oil
paint paper patience peace pepper plastic poetry power progress rain rice salt sand science silence
silk silver smoke snow soap steel sugar tea time traffic trouble truth water weather wheat wine
wood wool work
""".split()

PLACES_MORE = """
shops park market library museum beach bakery theater hotel lake castle church airport stadium
cinema cafe bank farm village harbor forest zoo bridge river mall pool gym
""".split()

OBJECTS_MORE = """
bag ball apple book pen cup letter gift hat coin key ticket map lamp picture flower watch phone
bottle box cake card toy pencil basket camera guitar scarf spoon plate mirror candle
""".split()

REGULAR_VERBS = """
accept add admire adopt answer appear approach arrive attack avoid bake balance boil borrow bother
brush call carry change chase check clean climb close collect color compare consider cook copy
count cover cross dance decide deliver demand deny describe design destroy discover discuss divide
doubt dress earn employ enjoy enter examine expect explain explore fail finish fix follow force
frighten gather greet guard guess guide hand happen harm hate help hope hunt ignore imagine improve
include inform inspect invent invite join judge jump kick knock land laugh learn lift like limit
listen live load lock look love manage mark measure mention miss mix move name need notice observe
obey offer open order own pack paint pass pause pick place plant play point polish pour practice
praise press prevent produce promise protect prove publish pull punish push question
raise reach receive record reduce refuse remain remember remind remove rent repair repeat replace
reply report rescue rest return reward ruin sail save search serve share shout sign smell smile
solve start stay study suggest support surprise surround talk taste test thank touch train trust
turn use visit vote wait walk want warn wash watch water whisper wish wonder work worry yell
""".split()

# Irregular verbs: base, past, present participle.
IRREGULAR_VERBS: tuple[tuple[str, str, str], ...] = tuple(
    (base, past, participle)
    for base, past, participle in (
        line.split()
        for line in """
become became becoming
begin began beginning
bring brought bringing
build built building
burn burned burning
buy bought buying
catch caught catching
choose chose choosing
come came coming
dig dug digging
draw drew drawing
drink drank drinking
drive drove driving
drop dropped dropping
eat ate eating
fall fell falling
feed fed feeding
feel felt feeling
fight fought fighting
find found finding
fly flew flying
forget forgot forgetting
give gave giving
go went going
grow grew growing
hear heard hearing
hide hid hiding
hold held holding
keep kept keeping
know knew knowing
leave left leaving
lend lent lending
lose lost losing
make made making
meet met meeting
pay paid paying
plan planned planning
ride rode riding
run ran running
see saw seeing
sell sold selling
send sent sending
show showed showing
sing sang singing
sit sat sitting
sleep slept sleeping
speak spoke speaking
spend spent spending
stand stood standing
steal stole stealing
stop stopped stopping
swim swam swimming
take took taking
teach taught teaching
tell told telling
think thought thinking
throw threw throwing
understand understood understanding
wear wore wearing
win won winning
write wrote writing
""".strip().splitlines()
    )
)

ADJECTIVES = """
able absent active afraid alone ancient angry anxious awful bad beautiful better big bitter black
blind blue bold boring brave brief bright broad broken brown busy calm careful cheap cheerful clean
clear clever cold common complete cool correct crazy cruel curious cute dangerous dark dead deep
delicious dirty dry dull early easy elegant empty enormous equal exact expensive fair false famous
fancy far fast fat final fine firm flat foreign formal fragile free fresh friendly full funny
gentle giant glad golden good grand gray great green guilty handsome happy hard harmless healthy
heavy helpful high hollow honest huge hungry ill important innocent jealous junior kind large late
lazy light little local lonely long loose loud lovely low loyal lucky mad main mean mild modern
modest narrow nasty national natural neat nervous new nice noisy normal odd old open ordinary
original pale perfect plain pleasant poor popular possible precious pretty private proud public
pure purple quick quiet rapid rare raw ready real red rich ripe rough round royal rude sad safe
salty same senior serious shallow sharp shiny short shy silent silly simple single sleepy slow
small smart smooth soft solid sour special steep stiff strange strict strong stupid sudden sweet
tall tame terrible thick thin tight tiny tired total tough true typical ugly unusual useful usual
vast warm weak wealthy weird wet white whole wide wild wise wonderful wooden wrong yellow young
""".split()

ADVERBS = """
again almost already also always away badly barely carefully clearly early easily even eventually
everywhere exactly far fast finally forever gently gladly happily hardly here immediately indeed
instead just late lately later loudly maybe merely mostly nearby nearly never now nowhere often
once only outside partly perhaps probably quickly quietly quite rarely rather really recently
sadly safely seldom shortly simply sometimes soon still strongly suddenly surely there today
together tomorrow tonight too twice usually very well yesterday yet inside
""".split()

FUNCTION_WORDS = """
a about above across after afterwards against all along although among an and another any anybody
anyone anything are around as at be because been before behind being below beneath beside besides
between beyond both but by can could did do does done down during each either else enough every
everybody everyone everything except few fewer first for from had has have having he her hers
herself him himself his how however i if in into is it its itself last least less lots many may
me might more most much must my myself neither next no nobody none nor not nothing of off on one
onto or other others our ours ourselves out over own past per she should since so some somebody
someone something such than that the their theirs them themselves then these they this those
though through throughout till to toward towards under unless until up upon us was we were what
whatever when whenever where wherever whether which while who whoever whole whom whose why will
with within without would you your yours yourself person situation enthusiast argument commuting
friends friend didn doesn don isn wasn weren couldn wouldn yes
""".split()

CAPITALISED = """
Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May June July
August September October November December English French German Spanish American European I Mr
Mrs Europe Africa Asia America Paris London
""".split()

NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty
hundred thousand million half second third
""".split()

# Words that open a sentence, with a capital: with a leading space and, at the very start of a
# text, without one.
OPENERS = """
A After Afterwards All Although An And Another Any As At Because Before Both But By During Each
Eventually Every Everyone Fewer Few Finally For Four Five Friends From He Her Here His How However
I If In Instead It Its Last Later Many Maybe Meanwhile Most My Next No Nobody None Not Now On Once
One Only Our Perhaps Several She Since So Some Someone Sometimes Soon Still Such Suddenly Ten That
The Their Then There These They This Those Three Today Tomorrow Tonight Two Under Until We What
When Whenever Where Which While Who Why With Without Yesterday Yet You Your Fresh Heavy According
Police Voters Workers Researchers Scientists
""".split()

# Words that may follow a quotation mark or begin a text in lower case.
BARE = """
a an the this that these those he she it they we you his her their my in on at to of and but when
then after while because so if what who how why no yes not one two some many
""".split()

PUNCTUATION = [".", ",", "?", "!", ":", ";", "'", '"', "-", "(", ")", "'s", "'t"]
DIGITS = list("0123456789")


def plural(noun: str) -> str:
    """The regular plural of a noun, with the few irregular ones that the lexicon holds."""
    irregular = {
        "woman": "women",
        "person": "people",
        "mouse": "mice",
        "tooth": "teeth",
        "sheep": "sheep",
        "fish": "fish",
        "wife": "wives",
        "knife": "knives",
        "leaf": "leaves",
        "shelf": "shelves",
        "thief": "thieves",
        "wolf": "wolves",
        "potato": "potatoes",
    }
    if noun in irregular:
        return irregular[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def past(verb: str) -> str:
    """The past tense of a regular verb."""
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + "ed"


def participle(verb: str) -> str:
    """The present participle of a regular verb."""
    if verb.endswith("e"):
        return verb[:-1] + "ing"
    return verb + "ing"


VERBS: tuple[tuple[str, str, str], ...] = (
    tuple((verb, past(verb), participle(verb)) for verb in REGULAR_VERBS) + IRREGULAR_VERBS
)
