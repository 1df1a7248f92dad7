"""Templates that stand for words: what a reader sees of them, and that nothing is glued."""

from __future__ import annotations

import pytest

from trelm_ds.corpus import templates
from trelm_ds.corpus.measures import grouped, measure, superscript
from trelm_ds.corpus.wikitext import paragraphs_of

TABLES = (
    templates._SHOWN, templates._LAST, templates._SPELLED, templates._SIGNS, templates._SHIPS, templates._MADE,
    templates._ALIASES,
)  # fmt: skip


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("It is {{convert|5|to|10|km|mi|abbr=on}} long by road.", "It is 5 to 10 km long by road."),
        ("It weighs {{cvt|1,200|kg}}, they say.", "It weighs 1,200 kg, they say."),
        ("Born {{circa|1900}} in {{lang|fr|[[Paris]]}} by the river.", "Born c. 1900 in Paris by the river."),
        ("A {{lang-de|Haus}} is {{nowrap|a ''house''}} there.", "A Haus is a house there."),
        ("About {{frac|1|2}} or {{frac|3|1|2}} of it, maybe.", "About 1/2 or 3 1/2 of it, maybe."),
        ("{{As of|2020|4}} they were {{US$|5}} each there.", "As of April 2020 they were US$5 each there."),
        ("On {{ship|HMS|Ark Royal|91}} and {{HMS|Hood|51}} they sailed.", "On HMS Ark Royal and HMS Hood they sailed."),
        ("Foo ({{IPA|fu}}; born 1950) was a thing.{{sfn|X}}", "Foo (born 1950) was a thing."),
        ("Foo ({{IPA|fu}}) was {{unknown|of}} , a kind of thing.", "Foo was, a kind of thing."),
        ("Foo{{efn|not [[this]]}} bar <!-- [[nor this]] -->and more words.", "Foo bar and more words."),
        ("Left <ref name=a/>and <ref>out {{cite|x}}</ref>with all this.", "Left and with all this."),
        ("It is {{transliteration|ja|Hepburn|Tōkyō}} or {{transl|ar|ALA|al-kīmiyā’}}.", "It is Tōkyō or al-kīmiyā’."),
        ("It is {{transliteration|ru|Moskva}} or {{translit|ar|DIN|ʿAbd}}, too.", "It is Moskva or ʿAbd, too."),
        (
            "It has {{formatnum:3}}&nbsp;or {{formatnum:1234567.25}} or {{FORMATNUM:12|R}}.",
            "It has 3 or 1,234,567.25 or 12.",
        ),
        ("In 1914{{en dash}}1918 [[Paris]]{{spaced en dash}}the city.", "In 1914–1918 Paris – the city."),
        ("The ''Foo''{{'s}} crew saw H{{sub|2}}O there.", "The Foo's crew saw H2O there."),
        ("Of 10{{sup|6}} or 5{{e|-3}} {{chem2|CO2}} there.", "Of 10⁶ or 5 × 10⁻³ CO2 there."),
        ("Of {{chem|H|2|O}} and {{chem|NH|4|+}} there.", "Of H2O and NH4⁺ there."),
        ("In [[France]] ({{langx|fr|la France}}) they say.", "In France (la France) they say."),
        (
            "He is {{convert|5|ft|11|in|cm}} or {{convert|12|st|3|lb}} all told.",
            "He is 5 ft 11 in or 12 st 3 lb all told.",
        ),
        ("It is {{convert|1+1/2|mi|km|1}} or {{convert|3//4|in}} wide.", "It is 1 1/2 mi or 3/4 in wide."),
        ("It is {{convert|15|-|17|in|cm}}, {{convert|2|x|4|m}}, here.", "It is 15–17 in, 2 by 4 m, here."),
        ("It is {{convert|60|and(-)|80|kg}} or {{convert|20|C|F}}.", "It is 60 and 80 kg or 20 °C."),
        ("It is {{convert|1.5|e6acre|km2}} or {{cvt|3|km|0}} far.", "It is 1.5 million acre or 3 km far."),
        ("It is {{convert|{{frac|1|2}}|mi}} or {{val|1.2|0.3|e=6|u=kg}}.", "It is 1/2 mi or 1.2±0.3 × 10⁶ kg."),
        ("{{as of|2020|4|5|lc=y}} it was so, {{as of|2019}} not.", "as of 5 April 2020 it was so, As of 2019 not."),
        ("One {{quote|text=two three}} {{ill|Foo|de|lt=Bar}} {{uc:xyz}}.", "One two three Bar XYZ."),
        ("On {{ship||Titanic}} and {{nihongo||東京|Tōkyō}} and {{nihongo|Edo|江戸}}.", "On Titanic and Tōkyō and Edo."),
        ("See {{slink||Bar}} or {{font color|red|blue|x}} {{xt|y}}.", "See § Bar or x y."),
        ("Of {{music|flat}} and {{sic|hide=y|teh}} and {{HMAS|[[Perth]]}}.", "Of ♭ and teh and HMAS Perth."),
        ("In 1914{{unknown|x}}1918 and foo{{note}}bar{{note}}, 5{{note}} km.", "In 1914 1918 and foo bar, 5 km."),
        ("[[Foo]]{{note}}bar and {{lang|de|a}}{{lang|de|b}} {{Template:Nowrap|c}}.", "Foo bar and ab c."),
        ("About 5{{frac|1|2}}, 5 {{frac|3|4}}, {{1/2}} or 7{{half}} of it.", "About 5 1/2, 5 3/4, 1/2 or 7½ of it."),
        ("For {{INR}}500, {{£}}20 and {{US$}}1 in {{circa}} 1500.", "For ₹500, £20 and US$1 in c. 1500."),
        (
            "Of {{val|1|-|2|u=m}}, {{val|1.5|(3)}}, {{val|2|0.1|-0.2}} or {{val|7}}.",
            "Of 1–2 m, 1.5(3), 2+0.1−0.2 or 7.",
        ),
        ("In C{{music|#}}, B{{music|b}} with {{chem2|SO4(2-)}} on it.", "In C♯, B♭ with SO4²⁻ on it."),
        (
            "A {{convert|6|ft|m|adj=mid|-tall}} man, a {{cvt|-9|to|-7|m|ft|0|adj=mid|deep}} hole.",
            "A 6 ft-tall man, a -9 to -7 m deep hole.",
        ),
        ("Of Hawai{{okina}}i it is {{lt}} 5, {{No.|7}} or {{No.}} 8.", "Of Hawaiʻi it is < 5, No. 7 or No. 8."),
        ("An {{ill|Albert Foo|de|lt=}}, {{large|big}} and {{bg|red|words}}.", "An Albert Foo, big and words."),
        ("Foo ({{lang-fr|Bar}}; {{x}}; {{lang-de|Baz}}, {{x}}) was here.", "Foo (Bar; Baz) was here."),
        ("Foo ({{x}}; {{x}}, {{x}}) and Bar (born {{x}} ) was here.", "Foo and Bar (born) was here."),
        ("Call <code>printf()</code>, for (;;), or (1,) in this.", "Call printf(), for (;;), or (1,) in this."),
        (
            "So {{citation needed span|these words}}, {{CN span|text=those}} and {{H:title|tip|x}}.",
            "So these words, those and x.",
        ),
        (
            "It is {{convert|10|m3/s|cuft/s}} or {{convert|30|lb/in2|kPa}} at {{gaps|1|234}}.",
            "It is 10 m³/s or 30 lb/in² at 1234.",
        ),
        ("With an en dash{{snd}}so {{nbsp}}it goes{{'}}s.", "With an en dash – so it goes's."),
    ],
)
def test_templates_that_are_words_are_spelled_out(wikitext: str, text: str) -> None:
    assert [paragraph.text for paragraph in paragraphs_of(wikitext)] == [text]


def test_measures() -> None:
    assert measure(["5", "to", "10", "km", "mi"]) == "5 to 10 km"
    assert measure(["5", "km", "10"]) == "5 km"  # the 10 is a precision
    assert measure(["5"]) == "5"
    assert measure(["far"]) == measure([]) == ""


def test_numbers() -> None:
    assert [grouped(text) for text in ("1", "1234", "-1234567.8", "007", "x")] == [
        "1",
        "1,234",
        "-1,234,567.8",
        "007",
        "x",
    ]
    assert [superscript(text) for text in ("6", "−12", "2+", "st", "n+1", "a1")] == [
        "⁶",
        "⁻¹²",
        "²⁺",
        "st",
        "ⁿ⁺¹",
        "a1",
    ]


@pytest.mark.parametrize(
    "arguments", ["", "|", "||", "|||", "|a", "|1", "||b", "|a|b|c|d|e|f", "|1|2|3|4|5", "|a=b", "|1=", "|3=x"]
)
def test_no_parameters_or_too_many_are_no_crash(arguments: str) -> None:
    names = {name for table in TABLES for name in table}
    assert len(names) > 200
    source = " ".join(f"{{{{{name}{arguments}}}}}" for name in sorted(names))
    assert paragraphs_of(f"Some words before it. {source} {{{{formatnum:}}}} {{{{lc:}}}} {{{{:}}}} {{{{}}}}")
    others = " ".join(f"{{{{{name}{arguments}}}}}" for name in ("as of", "val", "formatnum", "lang-de", "nihongo"))
    assert paragraphs_of(f"Some words before it. {others}")
