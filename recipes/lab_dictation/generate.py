"""Make the laboratory-dictation set: sentences from a grammar, spoken by espeak-ng, kept as Ogg/Opus.

    apt-get install espeak-ng          # 1.51 was used
    pip install soundfile soxr         # soundfile 0.14 with libsndfile 1.2.2 was used
    python generate.py                 # writes train/, validation/, test/ beside this file (two minutes)

The texts, voices, speeds and pitches depend on SEED alone. With the versions above the audio is the same to the byte;
with others it may differ slightly. README.md says what the columns and groups mean.
"""

from __future__ import annotations

import csv
import io
import random
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr

HERE = Path(__file__).resolve().parent
SEED = 20261123
TRAIN, VALIDATION = 540, 60
TEST = {"seen": 102, "unseen_word": 34, "unseen_voice": 34}
VOICES = (
    *("en-us+m3", "en-us+f2", "en-gb+m7", "en-gb+f5"),
    *("en-gb-scotland+m1", "en-gb-x-rp+f3", "en-029+m2", "en-gb-x-gbcwmd+f4"),
)
UNSEEN_VOICE = "en-us-nyc+f1"
RATE = 16_000
# Of libsndfile, from 0 (256 kbit/s) to 1 (6 kbit/s). Any higher, and Opus drops all above 4 kHz.
COMPRESSION = 0.988

# Terms by slot. Those after the bar are for the test set's unseen words alone.
TERMS = {
    "reagent": """ethidium bromide, sodium chloride, potassium phosphate, magnesium sulfate, calcium carbonate,
        ammonium acetate, lithium hydroxide, zinc nitrate, copper sulfate, ferric citrate, barium chloride, acetic acid,
        hydrochloric acid, boric acid, formic acid, lactic acid, ethanol, methanol, isopropanol, acetone, chloroform,
        phenol, toluene, hexane, acetonitrile, formaldehyde, glutaraldehyde, glycerol, ethylene glycol, urea, guanidine,
        imidazole, mineral oil, distilled water, deionized water, saline, phosphate buffer, borate buffer, EDTA, SDS,
        mercaptoethanol, hydrogen peroxide, ammonia, bleach, detergent, bovine serum, pyridine, diethyl ether, butanol,
        sodium azide, potassium iodide, polyethylene glycol | xylene, dichloromethane, benzaldehyde, lanolin,
        cesium fluoride, tartaric acid, strontium, morpholine, turpentine""",
    "powder": """glucose, sucrose, lactose, mannitol, agarose, tryptone, peptone, gelatin, casein, albumin, activated
        charcoal, silica, starch, cellulose, caffeine, cholesterol, glycine, lysine, cysteine, tryptophan, biotin,
        glutathione, thymidine, adenosine, melatonin, yeast extract, skim milk, sodium bicarbonate, talc, ascorbic acid,
        sodium pyruvate, arginine, histidine | maltose, pectin, riboflavin, kaolin, graphite, menthol""",
    "enzyme": """trypsin, pepsin, lysozyme, collagenase, proteinase, ligase, polymerase, luciferase, amylase, catalase,
        papain, lipase, thrombin, ribonuclease, phosphatase, urease, cellulase, topoisomerase, reverse transcriptase
        | invertase, elastase, peroxidase, bromelain""",
    "drug": """ampicillin, kanamycin, streptomycin, penicillin, tetracycline, puromycin, doxycycline, insulin, dopamine,
        nicotine, heparin, hydrocortisone, tamoxifen, nystatin, colchicine, lidocaine, ibuprofen, erythromycin,
        rapamycin, cisplatin, atropine, serotonin | gentamicin, quinine, warfarin, ketamine, estradiol""",
    "stain": """methylene blue, crystal violet, trypan blue, Congo red, safranin, eosin, hematoxylin, rhodamine,
        fluorescein, bromophenol blue, iodine, malachite green, phenolphthalein, Giemsa stain, acridine orange,
        silver nitrate | carmine, litmus, fuchsin, alizarin""",
    "cells": """mouse fibroblasts, hepatocytes, cortical neurons, macrophages, lymphocytes, keratinocytes, erythrocytes,
        platelets, embryonic stem cells, fungal spores, green algae, zebrafish embryos, fruit fly larvae, baker's yeast,
        astrocytes, monocytes, hybridoma cells, insect cells, protoplasts, sperm cells, frog oocytes, melanoma cells,
        endothelial cells, human kidney cells | osteoblasts, amoebas, tadpoles, chondrocytes, nematodes""",
    "sample": """plasma, urine, saliva, lysate, supernatant, pellet, homogenate, eluate, filtrate, precipitate, slurry,
        suspension, emulsion, culture, spinal fluid, whole blood, river water, topsoil, pollen, crude extract, biopsy,
        residue, inoculum, broth, cheek swab, distillate, organic layer, aqueous phase, master mix, stock solution,
        control sample, aliquot | sputum, sewage, nectar, permafrost, bile""",
    "vessel": """beaker, Erlenmeyer flask, cuvette, vial, Petri dish, test tube, microplate, reservoir, bottle,
        crucible, separating funnel, graduated cylinder, syringe, cryovial, tray, jar, ice bucket, glass column,
        round bottom flask, capillary, carboy, evaporating dish, conical tube, sample cup, watch glass, drip chamber
        | ampoule, thimble, canister, decanter, retort""",
    "instrument": """centrifuge, spectrophotometer, incubator, autoclave, thermocycler, microscope, fume hood, water
        bath, analytical balance, freezer, refrigerator, hot plate, magnetic stirrer, orbital shaker, sonicator,
        lyophilizer, gas chromatograph, mass spectrometer, flow cytometer, fluorimeter, oscilloscope, microtome,
        cryostat, rotary evaporator, vacuum pump, peristaltic pump, plate reader, drying oven, furnace, calorimeter,
        viscometer, refractometer, polarimeter, potentiostat, bioreactor, fermenter, glove box, homogenizer,
        gel scanner, pressure cooker, laser, heating block | dosimeter, interferometer, barometer, kiln, telescope,
        electroporator""",
    "part": """filter, gasket, rotor, lamp, lens, nozzle, valve, hose, seal, thermostat, lid, fuse, bearing, motor,
        sensor, cable, detector, injector, drive belt, needle, display, battery, blade, pilot light, touch screen, door
        latch, power supply, alarm, piston, electrode, coolant line, exhaust fan
        | gearbox, hinge, piezo, solenoid, manifold""",
    "property": """absorbance, viscosity, conductivity, turbidity, fluorescence, density, salinity, acidity, melting
        point, refractive index, optical density, humidity, pressure, purity, viability, potency, solubility, moisture,
        boiling point, surface tension, flow rate, voltage, resistance, cell count, dry weight, half life, pulse width
        | luminosity, porosity, elasticity, torque, buoyancy""",
    "color": """yellow, cloudy, purple, pink, dark green, brown, turquoise, bright orange, colorless, milky, crimson,
        black, amber, pale blue, lavender, rusty, foamy, opaque, golden | maroon, iridescent, beige, indigo""",
    "method": """western blot, gel electrophoresis, titration, distillation, dialysis, filtration, crystallization,
        immunoprecipitation, transfection, sequencing run, ligation, cloning, ion exchange, spectroscopy, microscopy,
        calibration, serial dilution, fractionation, hybridization, mutagenesis, fermentation, dissection, binding
        assay, toxicity screen, bioassay, affinity purification, blood smear, electron microscopy, PCR, knockout
        experiment | autopsy, phlebotomy, radiography, sublimation, karyotyping""",
    "tissue": """liver, kidney, spleen, hippocampus, retina, thymus, pancreas, cartilage, bone marrow, skeletal muscle,
        lung, heart, stomach, brain stem, spinal cord, optic nerve, leaf, root tip, seedling, placenta, trachea, tendon
        | bladder, cerebellum, petal, esophagus, cornea""",
    "protein": """hemoglobin, actin, tubulin, collagen, keratin, ubiquitin, myosin, ferritin, interleukin, interferon,
        fibronectin, cadherin, histone, integrin, calmodulin, elastin, vimentin, rhodopsin, transferrin, cytochrome
        | dystrophin, aquaporin, clathrin, prolactin""",
    "tool": """spatula, forceps, scalpel, tongs, aluminum foil, rubber stopper, masking tape, mortar, thermometer,
        inoculating loop, timer, stir bar, wash bottle, ring stand, clamp, multichannel pipette, glass rod, hot pad,
        notebook, barcode scanner, screwdriver, flashlight, magnifier
        | tweezers, chisel, sponge, stethoscope, calipers""",
    "garment": """safety goggles, nitrile gloves, a lab coat, a face shield, a respirator, shoe covers, ear plugs,
        long sleeves, a hair net | earmuffs, an apron, a helmet""",
    "mesh": """filter paper, cotton wool, gauze, a nylon mesh, a sieve, glass fiber, cheesecloth, sand, a membrane
        | muslin, a colander, burlap""",
    "gas": """nitrogen, argon, helium, oxygen, carbon dioxide, hydrogen, methane, steam, air
        | xenon, propane, ozone, neon""",
    "hazard": """corrosive, flammable, toxic, explosive, radioactive, volatile, hygroscopic, infectious, unstable,
        light sensitive, expired, contaminated | carcinogenic, combustible, mislabeled, pungent""",
    "place": """top cupboard, bottom drawer, metal cabinet, wooden crate, cold room, chemistry wing, storeroom,
        darkroom, clean room, loading bay, animal facility, greenhouse, waste container, sink, basement, biosafety
        cabinet, locker, teaching lab | corridor, attic, courtyard, warehouse""",
    "treat": """vortex, shake, swirl, stir, rock, sonicate, incubate, heat, agitate, rotate, blend, soak
        | knead, marinate""",
    "manner": """gently, thoroughly, slowly, carefully, vigorously, briefly, immediately, quickly, twice,
        by hand, in the dark, on ice, under vacuum, before lunch, with constant mixing, without splashing
        | sparingly, diagonally, promptly""",
    "person": """the technician, the supervisor, our intern, the night shift, the safety officer, a visiting scientist,
        the undergraduate, the lab manager, my colleague, the pharmacist, the engineer, the auditor, the postdoc
        | the veterinarian, the janitor, a botanist, the chaplain""",
    "result": """failed, looks promising, gave a faint band, was inconclusive, worked perfectly, needs repeating, ran
        overnight, was stopped early, produced a smear, took longer than expected, showed no difference,
        exceeded the limit, drifted, confirmed our hypothesis, was positive, was negative, saturated the camera
        | astonished everybody, imploded, fizzled""",
}
TRAINING, HELD_OUT = (
    {slot: [" ".join(term.split()) for term in text.split("|")[side].split(",")] for slot, text in TERMS.items()}
    for side in (0, 1)
)

FRAMES = (
    "Add {volume} of {reagent} to {label} and {treat} for {time}.",
    "Pipette {volume} of the {sample} into the {vessel}.",
    "Weigh {mass} of {powder} into the {vessel}.",
    "Dissolve {mass} of {powder} in {volume} of {reagent}.",
    "Spin the {sample} at {speed} for {time}.",
    "Incubate the {cells} at {temperature} for {time}.",
    "Stain the {tissue} with {stain} for {time}.",
    "Rinse the {vessel} {manner} with {reagent}.",
    "The {instrument} needs a new {part}.",
    "Record the {property} of the {sample} every {time}.",
    "The {sample} in {label} turned {color} after {time}.",
    "Dilute the {enzyme} to {concentration} in {reagent}.",
    "Treat the {cells} with {concentration} {drug}.",
    "Store the {sample} in the {place} at {cold}.",
    "Set the {instrument} to {temperature} and wait {time}.",
    "Wipe the {instrument} with {percent} {reagent}.",
    "Transfer the {tissue} to the {vessel} with the {tool}.",
    "The {method} {result}.",
    "Start the {method} at {clock}.",
    "Purge the {vessel} with {gas} for {time}.",
    "Careful, the {reagent} is {hazard}.",
    "Label the {vessel} with lot number {digits}.",
    "Ask {person} to check the {part} of the {instrument}.",
    "Digest the {protein} with {enzyme} at {temperature}.",
    "Homogenize {mass} of {tissue} {manner}.",
    "We lost {percent} of the {cells} during the {method}.",
    "The {property} was {decimal} in {label}.",
    "Pour the {sample} {manner} into the {vessel}.",
    "Heat the {vessel} to {temperature} {manner}.",
    "Bring me the {tool} for the {instrument}.",
    "Repeat the {method} with {concentration} {powder}.",
    "Centrifuge {label} at {speed} and discard the {sample}.",
    "Elute the {protein} in {volume} of {reagent}.",
    "Return the {tool} to the {place}.",
    "Plate the {cells} at {count} per well.",
    "Inject {volume} of {drug} into the {tissue}.",
    "The {property} of the {color} {powder} is {decimal}.",
    "Replace the {part} and calibrate the {instrument} {manner}.",
    "Order {number} bottles of {reagent} from the catalog.",
    "{person} left the {sample} in the {place}.",
    "Block the membrane with {percent} {powder} for {time}.",
    "Measure {property} at {number} nanometers.",
    "Freeze the {cells} {manner} and move them to the {place}.",
    "Open the {gas} line and watch the {part}.",
    "Titrate the {reagent} {manner} until it turns {color}.",
    "Combine {ratio} {reagent} and {reagent}.",
    "The {hazard} {sample} goes into the {place}.",
    "Compare {protein} in {cells} and {cells}.",
    "Cut the {tissue} into {number} slices with the {tool}.",
    "Note that the {part} was {color} at {clock}.",
    "Do not store {powder} next to {reagent}.",
    "Wash the {cells} {number} times with {reagent}.",
    "Expect {protein} at {number} kilodaltons.",
    "Supplement the medium with {drug} and {percent} {reagent}.",
    "Count the {cells} in {label} {manner}.",
    "{person} booked the {instrument} until {clock}.",
    "Check whether {stain} labels the {tissue}.",
    "Where did {person} put the {stain}?",
    "Reduce the {property} by {percent} and run the {method} again.",
    "Filter the {sample} through {mesh} and keep the {sample}.",
    "The {drug} stock is {concentration} and {hazard}.",
    "Take {number} photographs of the {stain} slides.",
    "Attach the {part} to the {vessel} {manner}.",
    "{label} contains {volume} of {sample} and {enzyme}.",
    "Wear {garment} while you handle {stain}.",
    "Cancel the {method}, because the {instrument} {result}.",
)

ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def words_of(number: int) -> str:
    """A number from 0 to 99999 as a person says it, without hyphens or "and"."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f" {ONES[number % 10]}" if number % 10 else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = f" {words_of(number % size)}" if number % size else ""
    return f"{words_of(number // size)} {name}{rest}"


def split_words(text: str) -> list[str]:
    """The words of a transcription, in lower case."""
    return re.findall(r"[a-z']+", text.lower())


class Grammar:
    """Draws sentences. Terms and frames come from shuffled decks, so that each is used about equally often."""

    def __init__(self, random_: random.Random):
        self.random = random_
        self.decks: dict[str, list[str]] = {}
        self.quantities: dict[str, Callable[[], str]] = {
            "number": lambda: words_of(self.random.randint(2, 99)),
            "decimal": self.decimal,
            "volume": lambda: self.measure({"microliters": 990, "milliliters": 990, "liters": 12}),
            "mass": lambda: self.measure({"micrograms": 990, "milligrams": 990, "grams": 99, "kilograms": 6}),
            "time": lambda: self.measure({"seconds": 99, "minutes": 99, "hours": 48}, fractions=False),
            "concentration": lambda: self.measure({"millimolar": 990, "micromolar": 990, "nanomolar": 990}),
            "percent": lambda: self.measure({"percent": 95}),
            "temperature": lambda: f"{words_of(self.random.randint(12, 98))} degrees",
            "cold": self.cold,
            "speed": self.speed,
            "clock": self.clock,
            "digits": lambda: " ".join(ONES[self.random.randint(0, 9)] for _ in range(4)),
            "ratio": lambda: f"{words_of(self.random.randint(2, 9))} to {words_of(self.random.randint(2, 9))}",
            "count": lambda: f"{words_of(self.random.randint(2, 99))} thousand",
            "label": self.label,
        }

    def draw(self, name: str, terms: list[str] | tuple[str, ...]) -> str:
        """The next of the terms; all come once before any comes again."""
        if not self.decks.get(name):
            self.decks[name] = self.random.sample(terms, len(terms))
        return self.decks[name].pop()

    def decimal(self) -> str:
        """A number such as two point five."""
        digits = [ONES[self.random.randint(1, 9)] for _ in range(self.random.randint(1, 2))]
        return f"{ONES[self.random.randint(0, 12)]} point {' '.join(digits)}"

    def measure(self, units: dict[str, int], *, fractions: bool = True) -> str:
        """A quantity in one of the units, up to so many of it."""
        unit, most = self.random.choice(list(units.items()))
        kind = self.random.random()
        if fractions and kind < 0.2:
            amount = self.decimal()
        elif most > 100 and kind < 0.5:
            amount = words_of(10 * self.random.randint(10, most // 10))
        else:
            amount = words_of(self.random.randint(2, min(most, 99)))
        return f"{amount} {unit}"

    def cold(self) -> str:
        """Where things are kept."""
        if self.random.random() < 0.2:
            return "room temperature"
        sign, degrees = self.random.choice(("minus ", "")), self.random.choice((4, 8, 15, 18, 20, 40, 65, 80))
        return f"{sign}{words_of(degrees)} degrees Celsius"

    def speed(self) -> str:
        """How fast a centrifuge turns."""
        unit = self.random.choice(("times gravity", "revolutions per minute"))
        return f"{words_of(100 * self.random.randint(3, 140))} {unit}"

    def clock(self) -> str:
        """A time of the day."""
        hour = words_of(self.random.randint(1, 12))
        minute = self.random.choice(("", " fifteen", " thirty", " forty five", " twenty", " ten"))
        return hour + minute + self.random.choice((" in the morning", " this afternoon", " tomorrow", " tonight"))

    def label(self) -> str:
        """What is written on a vessel."""
        number = words_of(self.random.randint(1, 40))
        return self.random.choice(("tube", "well", "dish", "lane", "fraction", "batch")) + f" {number}"

    def sentence(self, with_unseen_word: bool) -> str:
        """One frame filled in, with one held-out term if that is asked for."""
        frame = self.draw("frames", FRAMES)
        slots = re.findall(r"{(\w+)}", frame)
        held_out = self.random.choice([index for index, slot in enumerate(slots) if slot in TERMS])
        for index, slot in enumerate(slots):
            if slot in self.quantities:
                term = self.quantities[slot]()
            elif with_unseen_word and index == held_out:
                term = self.draw(f"held out {slot}", HELD_OUT[slot])
            else:
                term = self.draw(slot, TRAINING[slot])
            frame = frame.replace(f"{{{slot}}}", term, 1)
        return frame[0].upper() + frame[1:]


def speak(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """One sentence as 16 kHz samples, without espeak-ng's silence around it."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    done = subprocess.run(command, capture_output=True, check=True)
    # The header of a stream states no true length.
    samples = np.frombuffer(done.stdout[44:], "<i2").astype("float32") / 2**15
    rate = struct.unpack_from("<I", done.stdout, 24)[0]
    loud = np.flatnonzero(np.abs(samples) > 0.005)
    margin = rate // 10
    return soxr.resample(samples[max(loud[0] - margin, 0) : loud[-1] + margin], rate, RATE)


def opus(samples: np.ndarray, serial: int) -> bytes:
    """The samples as Ogg/Opus. libsndfile draws each stream's serial number; here it is `serial`."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION)
    pages = b""
    for rest in file.getvalue().split(b"OggS")[1:]:
        page = b"OggS" + rest[:10] + struct.pack("<I", serial) + rest[14:18] + bytes(4) + rest[22:]
        pages += page[:22] + struct.pack("<I", ogg_crc(page)) + page[26:]
    return pages


def ogg_crc(page: bytes) -> int:
    """The checksum of an Ogg page whose own checksum is zero (RFC 3533, section 6)."""
    crc = 0
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ CRC_TABLE[crc >> 24 ^ byte]
    return crc


def crc_entry(value: int) -> int:
    """What one byte does to the checksum."""
    value <<= 24
    for _ in range(8):
        value = (value << 1 & 0xFFFFFFFF) ^ (0x04C11DB7 if value >> 31 else 0)
    return value


CRC_TABLE = [crc_entry(value) for value in range(256)]


def plan(random_: random.Random) -> dict[str, list[dict[str, str]]]:
    """Texts, voices and groups of every split."""
    grammar = Grammar(random_)
    taken: set[str] = set()

    def texts(count: int, accept: Callable[[list[str]], bool], with_unseen_word: bool = False) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            text = grammar.sentence(with_unseen_word)
            words = split_words(text)
            if " ".join(words) not in taken and 4 <= len(words) <= 15 and accept(words):
                taken.add(" ".join(words))
                found.append(text)
        return found

    def rows(sentences: list[str], group: str, voices: tuple[str, ...] = VOICES) -> list[dict[str, str]]:
        return [
            {"transcription": text, "voice": voices[index % len(voices)], "group": group}
            for index, text in enumerate(sentences)
        ]

    train = rows(texts(TRAIN, lambda words: True), "seen")
    known = {word for row in train for word in split_words(row["transcription"])}
    test = [
        *rows(texts(TEST["seen"], known.issuperset), "seen"),
        *rows(texts(TEST["unseen_word"], lambda words: not known.issuperset(words), True), "unseen_word"),
        *rows(texts(TEST["unseen_voice"], known.issuperset), "unseen_voice", (UNSEEN_VOICE,)),
    ]
    validation = rows(texts(VALIDATION, known.issuperset), "seen")
    splits = {"train": train, "validation": validation, "test": test}
    for split in splits.values():
        random_.shuffle(split)
    return splits


def main() -> None:
    """Write the three folders."""
    random_ = random.Random(SEED)  # noqa: S311
    for serial, (split, rows) in enumerate(plan(random_).items()):
        folder = HERE / split
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for index, row in enumerate(rows):
            name = f"{index:04d}.ogg"
            samples = speak(row["transcription"], row["voice"], random_.randint(165, 200), random_.randint(38, 62))
            samples *= random_.uniform(0.5, 0.9) / np.abs(samples).max()
            (folder / name).write_bytes(opus(samples, serial << 16 | index))
            rows[index] = {"file_name": name, **row}
        with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
