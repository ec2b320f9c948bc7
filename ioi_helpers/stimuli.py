"""What the prompts are made of: names, places, objects, templates and sentences.

These are stimuli, used as published so that results can be compared, each list with its source.
The bundled prefix sentences are this project's own: ordinary written English without any name,
standing in for the OpenWebText sentences of the LRQP post where nothing can be downloaded.
"""

from __future__ import annotations

# The 99 first names of the IOI paper's code (Wang et al. 2022; ioi_dataset.py, NAMES). The paper's
# text says 100; its code has 99.
PAPER_NAMES: tuple[str, ...] = tuple(
    """Michael Christopher Jessica Matthew Ashley Jennifer Joshua Amanda Daniel David James Robert
    John Joseph Andrew Ryan Brandon Jason Justin Sarah William Jonathan Stephanie Brian Nicole
    Nicholas Anthony Heather Eric Elizabeth Adam Megan Melissa Kevin Steven Thomas Timothy Christina
    Kyle Rachel Laura Lauren Amber Brittany Danielle Richard Kimberly Jeffrey Amy Crystal Michelle
    Tiffany Jeremy Benjamin Mark Emily Aaron Charles Rebecca Jacob Stephen Patrick Sean Erin Jamie
    Kelly Samantha Nathan Sara Dustin Paul Angela Tyler Scott Katherine Andrea Gregory Erica Mary
    Travis Lisa Kenneth Bryan Lindsey Kristen Jose Alexander Jesse Katie Lindsay Shannon Vanessa
    Courtney Christine Alicia Cody Allison Bradley Samuel""".split()
)

# The paper's names, those of the demo's prompts that are not among them, and a few more common
# ones. Each is a single token of GPT-2's vocabulary with a leading space (a test checks that).
NAMES: tuple[str, ...] = PAPER_NAMES + tuple(
    """Tom Dan Sid Martin Alice Bob Anna George Henry Jack Jane Kate Luke Peter Simon Victoria
    Frank Alex Max Ruby Lewis Carl Diana Helen Maria Oscar""".split()
)

# Places and objects of the IOI paper's code (ioi_dataset.py, NOUNS_DICT).
PLACES: tuple[str, ...] = tuple(
    "store garden restaurant school hospital office house station".split()
)
OBJECTS: tuple[str, ...] = tuple("ring kiss bone basketball computer necklace drink snack".split())

# The IOI paper's 15 templates (Wang et al. 2022, Appendix E, Figure 14), written in BABA form:
# [A] is the indirect object (IO), [B] the subject (S). The ABBA form exchanges the names in the
# first clause. The prompt ends before the last " [A]", which is the answer.
TEMPLATES: tuple[str, ...] = (
    "Then, [B] and [A] went to the [PLACE]. [B] gave a [OBJECT] to [A]",
    "Then, [B] and [A] had a lot of fun at the [PLACE]. [B] gave a [OBJECT] to [A]",
    "Then, [B] and [A] were working at the [PLACE]. [B] decided to give a [OBJECT] to [A]",
    "Then, [B] and [A] were thinking about going to the [PLACE]. "
    "[B] wanted to give a [OBJECT] to [A]",
    "Then, [B] and [A] had a long argument, and afterwards [B] said to [A]",
    "After [B] and [A] went to the [PLACE], [B] gave a [OBJECT] to [A]",
    "When [B] and [A] got a [OBJECT] at the [PLACE], [B] decided to give it to [A]",
    "When [B] and [A] got a [OBJECT] at the [PLACE], [B] decided to give the [OBJECT] to [A]",
    "While [B] and [A] were working at the [PLACE], [B] gave a [OBJECT] to [A]",
    "While [B] and [A] were commuting to the [PLACE], [B] gave a [OBJECT] to [A]",
    "After the lunch, [B] and [A] went to the [PLACE]. [B] gave a [OBJECT] to [A]",
    "Afterwards, [B] and [A] went to the [PLACE]. [B] gave a [OBJECT] to [A]",
    "Then, [B] and [A] had a long argument. Afterwards [B] said to [A]",
    "The [PLACE] [B] and [A] went to had a [OBJECT]. [B] gave it to [A]",
    "Friends [B] and [A] found a [OBJECT] at the [PLACE]. [B] gave it to [A]",
)

# The four sentences of TransformerLens' Exploratory Analysis demo, in the same form, and the pair
# of names (first, second) that stands in each. Each gives two prompts: S is first one, then the
# other. The demo lists the first pair's answers in the order Mary, John and the others' in the
# order of the sentence, so its prompts alternate BABA, ABBA, then ABBA, BABA three times.
DEMO_TEMPLATES: tuple[str, ...] = (
    "When [B] and [A] went to the shops, [B] gave the bag to [A]",
    "When [B] and [A] went to the park, [B] gave the ball to [A]",
    "When [B] and [A] went to the shops, [B] gave an apple to [A]",
    "After [B] and [A] went to the park, [B] gave a drink to [A]",
)
DEMO_PAIRS: tuple[tuple[str, str], ...] = (
    ("John", "Mary"),
    ("Tom", "James"),
    ("Dan", "Sid"),
    ("Martin", "Amy"),
)
DEMO_PROMPTS: tuple[str, ...] = (
    "When John and Mary went to the shops, John gave the bag to",
    "When John and Mary went to the shops, Mary gave the bag to",
    "When Tom and James went to the park, James gave the ball to",
    "When Tom and James went to the park, Tom gave the ball to",
    "When Dan and Sid went to the shops, Sid gave an apple to",
    "When Dan and Sid went to the shops, Dan gave an apple to",
    "After Martin and Amy went to the park, Amy gave a drink to",
    "After Martin and Amy went to the park, Martin gave a drink to",
)

# Sentences that repeat a name between the first clause and S2 (Wang et al. 2022, section 4.4 and
# Appendix L; advex.py, ADX_TEMPLATE). "an enthusiast person" is the published wording.
ADVERSARIAL_SENTENCES: tuple[str, ...] = (
    "[A] had a good day.",
    "[A] was enjoying the situation.",
    "[A] was tired.",
    "[A] enjoyed being with a friend.",
    "[A] was an enthusiast person.",
)

# Written for this project. None holds a name, and none is longer than 50 tokens.
PREFIXES: tuple[str, ...] = (
    "The river had risen during the night and covered most of the lower road.",
    "Several members of the committee asked for more time to read the report.",
    "It was the coldest winter that anyone in the valley could remember.",
    "The company said on Monday that it would close two of its older factories.",
    "A small boat was waiting near the bridge with its lights turned off.",
    "Most of the houses on this street were built before the war.",
    "The price of bread has doubled since the beginning of the year.",
    "Nobody in the audience noticed that the second act had been cut.",
    "The new law will give smaller farms a little more protection.",
    "After three days of rain the fields looked like a shallow lake.",
    "The museum opens early on Sundays, and children do not pay.",
    "Researchers found that the old map was wrong about the coast.",
    "There is a quiet path behind the church that leads to the forest.",
    "The team lost its first four games but never lost its good humor.",
    "According to the newspaper, the train was nearly two hours late.",
    "The soup was too hot to eat, so everyone talked instead.",
    "In those days a letter could take a month to cross the ocean.",
    "The government has promised to repair every school roof before summer.",
    "Two doctors and a nurse were on duty when the lights went out.",
    "The dog slept under the table through the whole meeting.",
    "Many of the paintings had been stored in a dry cave for safety.",
    "The bank refused to say how much money was missing.",
    "A thick fog came in from the sea and stayed until noon.",
    "The library bought the letters from a collector in another country.",
    "Voters were asked whether the city should build a larger airport.",
    "The engine made a strange sound every time the car turned left.",
    "Fresh snow covered the steps, and there was not a single footprint.",
    "The judge read the decision slowly and then left the room.",
    "Our oldest neighbor grows tomatoes on the roof of her building.",
    "The last bus leaves the market square a few minutes before midnight.",
    "Scientists are still not sure why the birds return to the same island.",
    "The book was published twice, both times without the final chapter.",
    "A broken window was the only sign that something had happened.",
    "The coach believes that younger players need more rest than practice.",
    "This part of the country produces some of the best cheese in the world.",
    "The phone rang for a long time before somebody picked it up.",
    "Workers discovered an ancient wall while they were digging a new tunnel.",
    "The minister did not answer questions about the cost of the plan.",
    "The garden is open to visitors from the first of April.",
    "It took the crew six weeks to film a scene that lasts one minute.",
    "The storm broke the fence and carried half of it down the hill.",
    "The students wrote their questions on small pieces of yellow paper.",
    "An old song was playing on the radio in the kitchen.",
    "The report describes how the fire started and why it spread so fast.",
    "Police officers stopped the traffic so that the ducks could cross.",
    "The village has only one shop, and it is closed on Wednesdays.",
    "There were not enough chairs, so the guests sat on the floor.",
    "The hospital will soon have a machine that can see through bone.",
    "The mountain looks close, but it takes a whole day to reach it.",
    "The committee has not yet decided who should pay for the damage.",
    "She kept the coins in a glass jar beside the window.",
    "He had never learned to swim, although he lived near the beach.",
    "They painted the door green because the blue paint had dried up.",
    "We waited for an hour, but the concert had been moved to another hall.",
    "The price includes a simple breakfast and a view of the harbor.",
    "The teacher explained the rule once more, this time with an example.",
    "The wind was so strong that the birds seemed to stand still.",
    "A group of engineers is testing the bridge with heavy trucks.",
    "The river is clean again, and the fish have come back.",
    "The movie was long, but the ending made up for it.",
    "Every morning the baker leaves a bag of warm rolls at the gate.",
    "The factory used to employ half of the people in the town.",
    "In the corner of the room stood a piano that nobody played.",
    "The army crossed the border at night and met no resistance.",
    "The survey shows that fewer people read a newspaper every day.",
    "The horses were tired after the long climb and drank for several minutes.",
    "A new road will connect the two towns before the end of next year.",
    "The king ordered the gates to be opened for the traders.",
    "The computer crashed twice before the results could be saved.",
    "Heavy clouds were moving over the hills from the west.",
    "The restaurant on the corner serves the same three dishes every day.",
    "The crowd became silent when the old singer walked onto the stage.",
    "The lawyer asked the court to consider the new evidence.",
    "It is not easy to grow roses in such dry ground.",
    "The ship carried sugar, cotton and a cage of noisy parrots.",
    "The stairs were steep and the lamp gave very little light.",
    "The official numbers will be published later this week.",
    "A young fox was watching the chickens from the edge of the field.",
    "The house had been empty for years, and grass grew through the floor.",
    "The artist never explained what the red circle was supposed to mean.",
    "The hotel was full, so the travelers slept at the station.",
    "The experiment failed three times before anyone found the mistake.",
    "The newspaper apologized for the error on its front page.",
    "A single tree stood in the middle of the square.",
    "The election was decided by fewer than a hundred votes.",
    "The children built a castle out of sand, and the sea took it away.",
    "The train passed through eleven tunnels before it reached the plain.",
    "The clock in the tower has been wrong since last autumn.",
    "The council plans to plant a thousand trees along the river.",
    "Nobody could find the key, although everyone had seen it that morning.",
    "The medicine works well, but it must be kept in a cold place.",
    "The farmer sold his best cow to pay for a new roof.",
    "The prince gave a short speech and opened the new library.",
    "The road was closed because a truck had lost its load of apples.",
    "The captain checked the weather again and decided to stay in the harbor.",
    "A black cat crossed the street and vanished behind the bakery.",
    "The university offers free courses to people who work at night.",
    "The plan sounds simple, but it would change the way the city works.",
    "The carpet was made by hand and took almost two years to finish.",
    "The candle burned down while they were still looking for matches.",
    "The rules of the game are older than the country itself.",
    "The power returned shortly after noon, and the shops opened again.",
    "The actor forgot a line, but the audience did not seem to notice.",
    "The well behind the barn has never been dry, not even in August.",
    "The mail arrives twice a week if the weather is good.",
    "The guard looked at the paper for a long time and shook his head.",
    "The island can be reached only by boat and only when the sea is calm.",
    "The new product is lighter and cheaper than the one it replaces.",
    "The soldiers shared their bread with the people of the village.",
    "The exhibition shows how the harbor looked two hundred years ago.",
    "A loud noise woke the whole building shortly before five.",
    "The writer lived alone and answered every letter by hand.",
    "The judge was known for her patience and her short sentences.",
    "The desert is hot during the day and very cold at night.",
    "The festival begins with a long walk through the old town.",
    "The club has more members than it has seats.",
    "The bear came down from the forest to look for food.",
    "The owner of the shop counted the money twice and locked the door.",
    "A large part of the budget will be spent on public transport.",
    "The water in the lake is so clear that you can see the bottom.",
)
