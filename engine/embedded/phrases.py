"""What the embedded model knows how to say: sentences about a hydro power station.

Everything here was written for this project. The training text and the demo's prompts are both
built from it, so the model meets in the demo the kind of text it was trained on.
"""

from __future__ import annotations

from random import Random

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PEOPLE = (
    "Anna",
    "Boris",
    "Clara",
    "David",
    "Elena",
    "Felix",
    "Greta",
    "Hugo",
    "Irene",
    "Jonas",
    "Karin",
    "Lukas",
)
ROLES = ("operator", "engineer", "fitter", "guard", "diver", "inspector")
MACHINES = ("gate", "pump", "turbine", "valve", "crane", "boiler", "winch", "screen")
WEATHER = (
    "light rain",
    "heavy rain",
    "a cold wind",
    "thick fog",
    "clear sky",
    "wet snow",
    "warm sun",
    "a hard frost",
)
PLACES = (
    "the upper reservoir",
    "the lower reservoir",
    "the intake tower",
    "the turbine hall",
    "the control room",
    "the spillway",
    "the tailrace",
    "the surge tank",
    "the valve house",
    "the switch yard",
    "the north dam",
    "the old tunnel",
)
PARTS = (
    "the bearing",
    "the guide ring",
    "the seal",
    "the oil filter",
    "the trash rack",
    "the rotor",
    "the cooling pipe",
    "the brake",
    "the ladder",
    "the pressure gauge",
)
STATES = (
    "clean",
    "dry",
    "a little warm",
    "a little worn",
    "in good order",
    "cold to the hand",
    "ready for service",
)
RUNS = ("quiet", "steady", "slow but safe", "louder than usual", "smooth", "without fault")
MOODS = ("calm", "stormy", "rainy", "frosty", "foggy", "busy")

MOOD_LINES: dict[str, tuple[str, ...]] = {
    "calm": (
        "The water was still and the lamps on the dam burned without a flicker.",
        "Nothing moved but the needle of the flow meter.",
        "The turbines hummed evenly and nobody had to leave the control room.",
        "A heron stood on the spillway until the sun came up.",
    ),
    "stormy": (
        "The wind pushed waves against the dam and the spillway gates were opened by one step.",
        "Lightning struck the far ridge and the lights went dim for a moment.",
        "We lowered the load on two turbines and kept a man at the intake tower.",
        "Branches came down the river and the trash rack had to be cleaned twice.",
    ),
    "rainy": (
        "Rain fell on the upper reservoir from dusk to dawn and the level rose by nine centimetres.",
        "The drains in the valve house ran full, but the pumps kept up with the water.",
        "We opened one gate a little and wrote down the level every hour.",
        "The path to the intake tower was slippery, so we walked it in pairs.",
    ),
    "frosty": (
        "Ice formed on the trash rack and we broke it with long poles.",
        "The oil was thick in the morning, so the pumps were warmed before the start.",
        "We ran warm air along the gates to keep the seals free.",
        "The stairs to the dam were salted before the day shift arrived.",
    ),
    "foggy": (
        "Fog lay on the lower reservoir and the far bank could not be seen.",
        "The horn at the spillway sounded every ten minutes.",
        "We read the gauges by hand lamp and trusted the instruments.",
        "The boat stayed at the pier until the air was clear.",
    ),
    "busy": (
        "Three calls came from the grid within one hour and each asked for more power.",
        "Both shifts worked side by side until the second turbine was back in service.",
        "The crane lifted the new rotor into place before noon.",
        "Tea was made four times and nobody found a chair.",
    ),
}

FACTS: dict[str, tuple[str, ...]] = {
    "a penstock": (
        "A penstock is the steep pipe that carries water from the reservoir down to the turbine.",
        "It is built of thick steel, because the pressure at the lower end is very high.",
        "A valve at the top can close it when the pipe must be inspected.",
    ),
    "a reservoir": (
        "A reservoir is the lake behind the dam, where water is kept until it is needed.",
        "Its level is read every hour and written in the log book.",
        "A full reservoir means that the station can run through many dry days.",
    ),
    "a turbine": (
        "A turbine is the wheel that turns when water flows through it.",
        "Its shaft drives the generator, which makes the electric power.",
        "The guide vanes around the wheel decide how much water may enter.",
    ),
    "a gate": (
        "A gate is a heavy steel plate that holds back the water or lets it pass.",
        "Each gate has a number and a code word, and both are written in the log book.",
        "Gates are moved slowly, one step at a time, so that no wave runs down the river.",
    ),
    "a generator": (
        "A generator turns the motion of the shaft into electric power.",
        "Its rotor spins inside a ring of copper coils.",
        "It must stay cool and dry, so air and water flow around it all day.",
    ),
    "a spillway": (
        "A spillway is the safe way for flood water to pass the dam.",
        "It is used only when the reservoir is full and more rain is coming.",
        "Below it the water falls into a deep pool and loses its force.",
    ),
    "a surge tank": (
        "A surge tank is a tall open shaft beside the penstock.",
        "When a valve closes quickly, the water rises in the tank and not in the pipe.",
        "In this way the pipe is protected from sudden pressure.",
    ),
    "a trash rack": (
        "A trash rack is a screen of steel bars in front of the intake.",
        "It keeps branches, leaves and ice out of the penstock.",
        "The operator cleans it after every storm.",
    ),
    "a tailrace": (
        "A tailrace is the channel that leads the water away from the turbine.",
        "From there the water goes back to the river.",
        "Its level must stay low, or the turbine loses power.",
    ),
    "a governor": (
        "A governor keeps the turbine at the right speed.",
        "When the load grows it opens the guide vanes, and when the load falls it closes them.",
        "It does this many times in every minute without any help.",
    ),
    "a log book": (
        "A log book is the written memory of the station.",
        "Every level, every order and every code word is noted in it with the time.",
        "The next shift reads it before they touch anything.",
    ),
    "a code word": (
        "A code word is an invented name that is given to a machine for one shift.",
        "Nobody can guess it, so whoever repeats it has really read the log book.",
        "If even one page is lost, the word cannot be repeated.",
    ),
}

ADVICE: dict[str, tuple[str, ...]] = {
    "the water level rises too fast": (
        "First read the level again, because a gauge can be wrong.",
        "Then open the spillway gate by one step and warn the people down the river.",
        "Write the time and the level in the log book and look again after ten minutes.",
    ),
    "a bearing becomes hot": (
        "Lower the load at once and check the oil.",
        "If the bearing stays hot, stop the turbine and close the guide vanes.",
        "Call the fitter and do not start again before the oil filter has been changed.",
    ),
    "the trash rack is blocked": (
        "Lower the flow through the intake, so that the screen is not under full pressure.",
        "Clean the bars from the top to the bottom and count the branches that are taken out.",
        "After that raise the flow slowly and watch the pressure gauge.",
    ),
    "the lights go out": (
        "Stay where you are and switch on the hand lamp.",
        "The batteries will feed the control room within a few seconds.",
        "Then call the grid and start the small turbine first, because it needs no outside power.",
    ),
    "a valve does not close": (
        "Do not use force, because the stem may break.",
        "Close the gate above the valve and let the pipe run empty.",
        "Then the fitter can open the valve and look for a stone or a piece of wood.",
    ),
    "a code word is missing": (
        "Look for the page on which it was written, and do not guess.",
        "If the page is lost, tell the next shift and give the machine a new code word.",
        "A wrong word is worse than no word at all.",
    ),
}


def clock(rng: Random) -> str:
    """A time of day, to five minutes."""
    return f"{rng.randrange(24):02d}:{rng.randrange(0, 60, 5):02d}"


def machine(rng: Random) -> str:
    """A numbered machine, the thing a code word belongs to."""
    return f"{rng.choice(MACHINES)} {rng.randrange(1, 10)}"


def log_line(rng: Random) -> str:
    """One sentence of a log book, without any code word in it."""
    (who, mate), role, what = rng.sample(PEOPLE, 2), rng.choice(ROLES), machine(rng)
    place, part, state = rng.choice(PLACES), rng.choice(PARTS), rng.choice(STATES)
    low, high = rng.randrange(2, 40), rng.randrange(40, 99)
    match rng.randrange(16):
        case 0:
            at, steps = clock(rng), rng.randrange(2, 10)
            return f"At {at} {who} opened {what} by {steps} steps and wrote down the flow."
        case 1:
            return f"The level at {place} is {high} metres and the flow is {low} cubic metres per second."
        case 2:
            return f"{who}, the {role}, walked to {place} and found {part} {state}."
        case 3:
            return f"There was {rng.choice(WEATHER)} over {place} until {clock(rng)}."
        case 4:
            return f"At {clock(rng)} the {role} cleaned {part} of {what}."
        case 5:
            return f"{what.capitalize()} ran at {high} percent load and was {rng.choice(RUNS)}."
        case 6:
            return f"The {role} asked for a new lamp at {place}."
        case 7:
            return f"After {rng.choice(WEATHER)} in the night, {who} read the gauges twice."
        case 8:
            return f"{who} called {mate} at {clock(rng)} because {part} was loose."
        case 9:
            return f"We closed {what} for {low} minutes and checked {part}."
        case 10:
            return f"The grid asked for {high} megawatts, so {what} was started at {clock(rng)}."
        case 11:
            return f"No one was at {place} between {clock(rng)} and {clock(rng)}."
        case 12:
            return f"On {rng.choice(DAYS)} the {role} will paint the door of {place}."
        case 13:
            return f"The oil of {what} was changed and {part} is in good order again."
        case 14:
            return f"A boat with {rng.randrange(2, 9)} visitors came to {place} at {clock(rng)}."
        case _:
            return f"{who} and {mate} carried {part} to {place}."
