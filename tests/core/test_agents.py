"""What a User-Agent stands for."""

import subprocess
import sys
from typing import Any

import pytest
from crawleruseragents import CRAWLER_USER_AGENTS_DATA, is_crawler
from hypothesis import given
from hypothesis import strategies as st

from adcore.core import agents as module
from adcore.core.agents import USER_AGENT_CHARS_MAX, Agent, parse_user_agent
from adcore.core.inventory import DEVICES, OPERATING_SYSTEMS

# As the browsers sent them; none is shortened.
# ruff: noqa: E501
# fmt: off
AGENTS: list[tuple[str, str, bool, str]] = [
    ("desktop", "windows", False, "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Safari/537.36"),
    ("desktop", "windows", False, "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Safari/537.36 Edg/129.0.0.0"),
    ("desktop", "windows", False, "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:131.0) Gecko/20100101 Firefox/131.0"),
    ("desktop", "windows", False, "Mozilla/5.0 (compatible; MSIE 9.0; Windows NT 6.1; Trident/5.0; Tablet PC 2.0)"),
    ("desktop", "windows", False, "Mozilla/5.0 (Windows NT 6.1; WOW64; Trident/7.0; rv:11.0) like Gecko"),
    ("desktop", "macos", False, "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 Safari/605.1.15"),
    ("desktop", "macos", False, "Mozilla/5.0 (Macintosh; Intel Mac OS X 14.6; rv:131.0) Gecko/20100101 Firefox/131.0"),
    ("desktop", "linux", False, "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Safari/537.36"),
    ("desktop", "linux", False, "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:131.0) Gecko/20100101 Firefox/131.0"),
    ("desktop", "chromeos", False, "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Safari/537.36"),
    ("desktop", "other", False, "Mozilla/5.0 (X11; FreeBSD amd64; rv:130.0) Gecko/20100101 Firefox/130.0"),
    ("mobile", "ios", False, "Mozilla/5.0 (iPhone; CPU iPhone OS 17_6_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 Mobile/15E148 Safari/604.1"),
    ("mobile", "ios", False, "Mozilla/5.0 (iPhone; CPU iPhone OS 17_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/129.0.6668.46 Mobile/15E148 Safari/604.1"),
    ("mobile", "ios", False, "Mozilla/5.0 (iPod touch; CPU iPhone OS 12_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/12.1 Mobile/15E148 Safari/604.1"),
    ("mobile", "ios", False, "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 [FBAN/FBIOS;FBAV/470.0.0.40.97;FBBV/617;FBDV/iPhone15,2;FBMD/iPhone;FBSN/iOS;FBSV/17.5;FBSS/3;FBCR/;FBID/phone;FBLC/ja_JP;FBOP/80]"),
    ("tablet", "ios", False, "Mozilla/5.0 (iPad; CPU OS 16_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/16.6 Mobile/15E148 Safari/604.1"),
    ("mobile", "android", False, "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Mobile Safari/537.36"),
    ("mobile", "android", False, "Mozilla/5.0 (Linux; Android 14; SM-S928B) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/25.0 Chrome/121.0.0.0 Mobile Safari/537.36"),
    ("mobile", "android", False, "Mozilla/5.0 (Android 14; Mobile; rv:131.0) Gecko/131.0 Firefox/131.0"),
    ("tablet", "android", False, "Mozilla/5.0 (Linux; Android 13; SM-X710) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Safari/537.36"),
    ("tablet", "android", False, "Mozilla/5.0 (Android 13; Tablet; rv:131.0) Gecko/131.0 Firefox/131.0"),
    ("tablet", "android", False, "Mozilla/5.0 (Linux; Android 9; KFMAWI) AppleWebKit/537.36 (KHTML, like Gecko) Silk/108.4.6 like Chrome/108.0.5359.220 Safari/537.36"),
    ("mobile", "android", False, "Opera/9.80 (Android; Opera Mini/36.2/119.132; U; id) Presto/2.12.423 Version/12.16"),
    ("mobile", "other", False, "Mozilla/5.0 (Windows Phone 10.0; Android 6.0.1; Microsoft; Lumia 950) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/52.0.2743.116 Mobile Safari/537.36 Edge/15.15063"),
    ("mobile", "other", False, "Mozilla/5.0 (BB10; Touch) AppleWebKit/537.10+ (KHTML, like Gecko) Version/10.0.9.2372 Mobile Safari/537.10+"),
    ("mobile", "other", False, "Mozilla/5.0 (Mobile; Nokia_8110_4G; rv:48.0) Gecko/48.0 Firefox/48.0 KAIOS/2.5"),
    ("tv", "other", False, "Mozilla/5.0 (SMART-TV; Linux; Tizen 6.0) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/4.0 Chrome/76.0.3809.146 TV Safari/537.36"),
    ("tv", "other", False, "Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/94.0.4606.128 Safari/537.36 WebAppManager"),
    ("tv", "android", False, "Mozilla/5.0 (Linux; Android 9; BRAVIA 4K UR3 Build/PTT1.190515.001.S104; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/120.0.0.0 Safari/537.36"),
    ("tv", "android", False, "Mozilla/5.0 (Linux; Android 7.1.2; AFTMM Build/NS6265; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/70.0.3538.110 Mobile Safari/537.36"),
    ("tv", "other", False, "AppleTV11,1/11.1"),
    ("tv", "other", False, "Roku/DVP-9.10 (519.10E04111A)"),
    ("tv", "other", False, "Mozilla/5.0 (PlayStation; PlayStation 5/2.26) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/13.0 Safari/605.1.15"),
    ("tv", "windows", False, "Mozilla/5.0 (Windows NT 10.0; Win64; x64; Xbox; Xbox Series X) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/48.0.2564.82 Safari/537.36 Edge/20.02"),
    ("tv", "other", False, "Mozilla/5.0 (Nintendo Switch; WifiWebAuthApplet) AppleWebKit/606.4 (KHTML, like Gecko) NF/6.0.1.15.4 NintendoBrowser/5.1.0.20393"),
    ("tv", "linux", False, "Mozilla/5.0 (X11; Linux armv7l) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/90.0.4430.225 Safari/537.36 CrKey/1.56.500000"),
    ("other", "android", False, "Mozilla/5.0 (Linux; Android 12; Quest 2) AppleWebKit/537.36 (KHTML, like Gecko) OculusBrowser/29.0 Chrome/116.0.0.0 VR Safari/537.36"),
    ("tablet", "other", False, "Mozilla/5.0 (X11; U; Linux armv7l like Android; en-us) AppleWebKit/531.2+ (KHTML, like Gecko) Version/5.0 Safari/533.2+ Kindle/3.0+"),
    ("other", "other", True, "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"),
    ("mobile", "android", True, "Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X Build/MMB29P) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.6668.70 Mobile Safari/537.36 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"),
    ("other", "other", True, "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)"),
    ("other", "other", True, "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)"),
    ("desktop", "linux", True, "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/129.0.0.0 Safari/537.36"),
    ("other", "other", True, "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)"),
    ("other", "other", True, "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; GPTBot/1.2; +https://openai.com/gptbot)"),
    ("other", "other", True, "curl/8.5.0"),
    ("other", "other", True, "python-requests/2.32.3"),
    ("other", "other", True, "Wget/1.21.4"),
    ("other", "other", False, ""),
    ("other", "other", False, "-"),
    ("tablet", "android", False, "Dalvik/2.1.0 (Linux; U; Android 13; Pixel 6 Build/TQ3A)"),
    ("tablet", "android", False, "Mozilla/5.0 (Linux; U; en-us; KFTT Build/IML74K) AppleWebKit/535.19 Silk/3.4 Safari/535.19 Silk-Accelerated=true"),
    ("other", "ios", False, "MyApp/1.0 CFNetwork/1494.0.7 Darwin/23.4.0"),
    ("other", "other", True, "okhttp/4.12.0"),
    ("tv", "android", False, "Mozilla/5.0 (Linux; Android 13; SHIELD Android TV) Chrome/100"),
]
# fmt: on


@pytest.mark.parametrize(("device", "os", "bot", "text"), AGENTS, ids=[row[3][:70] or "empty" for row in AGENTS])
def test_device_system_and_bot_of_a_user_agent(device: str, os: str, bot: bool, text: str) -> None:
    assert parse_user_agent(text) == (device, os, bot)
    assert device in DEVICES
    assert os in OPERATING_SYSTEMS


@pytest.mark.parametrize(
    ("word", "device"),
    [
        *(("AFTT Build", "tv"), ("xAFTT", "other"), ("_aftt", "other"), ("(aftt)", "tv"), ("aft", "other")),
        *(("DTV", "tv"), ("HDTV", "other"), ("dtvx", "other"), ("Large Screen", "tv"), ("enlarge screen", "other")),
        *(("tablet", "tablet"), ("tablets", "other"), ("xtablet", "other"), (" TABLET;", "tablet")),
        *(("Quest 3", "other"), ("X11", "desktop"), ("ax11", "other"), ("x111", "other"), ("bb10", "mobile")),
        *(("xbb10", "other"), ("bb101", "other"), ("xbox", "tv"), ("SmartTV", "tv")),
    ],
)
def test_words_that_stand_by_themselves(word: str, device: str) -> None:
    """In any case, at the start, in the middle and at the end."""
    for text in (word, f"- {word}", f"{word} -", word.lower(), word.upper()):
        assert parse_user_agent(text).device == device, text


def test_bots_are_those_of_the_kept_list() -> None:
    seen = [text for crawler in CRAWLER_USER_AGENTS_DATA for text in crawler.get("instances", ())]
    seen = [text for text in seen if text.isascii() and len(text) <= USER_AGENT_CHARS_MAX]
    assert len(seen) > 1000
    assert all(parse_user_agent(text).bot for text in seen)
    for _, _, bot, text in AGENTS:
        assert bot is is_crawler(text)


def test_each_distinct_user_agent_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    resolve = module._resolve

    def counting(text: str, domains: Any) -> Any:
        parsed.append(text)
        return resolve(text, domains)

    monkeypatch.setattr(module, "_resolve", counting)
    text = "Mozilla/5.0 (X11; Linux x86_64) once/1.0"
    assert {parse_user_agent(text) for _ in range(50)} == {Agent("desktop", "linux", False)}
    assert parsed == [text]


def test_the_memory_of_user_agents_is_bounded() -> None:
    for number in range(module.USER_AGENTS_KEPT + 100):
        parse_user_agent(f"one-of-many/{number}")
    assert module._parse_user_agent.cache_info().currsize == module.USER_AGENTS_KEPT


def test_an_overlong_user_agent_is_cut_before_it_is_parsed_or_kept() -> None:
    misses = module._parse_user_agent.cache_info().misses
    long = "Mozilla/5.0 (Windows NT 10.0; Win64; x64)" + "z" * USER_AGENT_CHARS_MAX
    assert parse_user_agent(long + "1") == parse_user_agent(long + "2") == ("desktop", "windows", False)
    assert module._parse_user_agent.cache_info().misses == misses + 1


@given(
    st.one_of(
        st.binary(max_size=2000).map(lambda raw: raw.decode("latin-1")),
        st.text(st.characters()),
        st.just("\ud800"),
    )
)
def test_no_user_agent_makes_the_parser_fail(text: str) -> None:
    agent = parse_user_agent(text)
    assert agent.device in DEVICES
    assert agent.os in OPERATING_SYSTEMS


def test_the_data_is_there_once_the_module_is_imported() -> None:
    """So that no request waits for a file to be read or a thousand patterns to be compiled."""
    code = (
        "import sys; from adcore.core import agents\n"
        "before = set(sys.modules)\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(args) if event == 'open' else None)\n"
        "assert agents.parse_user_agent('Googlebot/2.1').bot\n"
        "assert agents.parse_user_agent('Mozilla/5.0 (X11; Linux x86_64)').os == 'linux'\n"
        "assert set(sys.modules) == before and not opened, (set(sys.modules) - before, opened)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
