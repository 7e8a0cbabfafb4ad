"""The IVR of a call: menus, digits, steps, and what is left of them after a takeover."""

from __future__ import annotations

import msgspec
import pytest

from ari_ha.core.machine import Done, Outcome, Refused, Unknown, Unreachable
from ari_ha.core.ports.ari import AriEvent
from ari_ha.core.ports.store import StoreChanged
from ari_ha.core.ports.web import WebAnswer
from ari_ha.wire import ari, link
from ari_ha.wire.ivr import IvrMenuValue, IvrStep, complaints, step_at
from ari_ha.wire.keyspace import (
    AttemptOfAgent,
    DrainValue,
    IvrPlace,
    LegValue,
    OwnerValue,
    RecordValue,
    Value,
    WaitingValue,
    decode,
)
from tests.support.node_bench import LOST, NODE, UTC0, Bench

SUPPORT = IvrStep(do="queue", to="support", variables={"HA_PRIORITY": "7", "HA_SKILLS": "german"})
PAY = IvrStep(
    do="request", to="http://pay.test/v1", lookup="http://pay.test/v1/outcome",
    done=IvrStep(do="menu", to="thanks"), failed=IvrStep(do="menu", to="main"),
    unsure=IvrStep(do="queue", to="support"),
)  # fmt: skip
MENUS = {
    "main": IvrMenuValue(
        menu="main", prompts=["sound:hello", "sound:choose"], invalid_prompts=["sound:wrong"],
        choices={"1": SUPPORT, "2": IvrStep(do="menu", to="account"), "3": PAY, "9": IvrStep(do="repeat"),
                 "44": IvrStep(do="hangup"), "4": IvrStep(do="dialplan", to="shop,200,1", effects=True,
                                                          unsure=IvrStep(do="queue", to="support"))},
        otherwise=IvrStep(do="queue", to="support"),
    ),
    "account": IvrMenuValue(
        menu="account", prompts=["sound:number"], collect="ACCOUNT", digits_max=8, collected=PAY
    ),
    "thanks": IvrMenuValue(menu="thanks", prompts=["sound:thanks"], choices={"1": SUPPORT}),
}  # fmt: skip


class IvrBench(Bench):
    """A bench whose caller is in the IVR."""

    def __init__(self, agents: tuple[str, ...] = ()) -> None:
        super().__init__(agents=agents, start=False)
        for name, menu in MENUS.items():
            self.store.put(self.keys.ivr(name), menu)
        self.start()

    def enter(self) -> str:
        return self.trunk(verb="ivr,main")

    def type(self, channel: str, digits: str) -> None:
        for digit in digits:
            event = ari.ChannelDtmfReceived(digit=digit, channel=self.asterisk.channel(channel))
            self.post(AriEvent(event=event))

    def prompt_ends(self) -> None:
        play = self.operations("channels.play")[-1]
        playback = ari.Playback(id=play["playbackId"], target_uri=f"channel:{play['channelId']}")
        self.post(AriEvent(event=ari.PlaybackFinished(playback=playback)))

    def said_menus(self) -> list[str]:
        return [play["media"] for play in self.operations("channels.play")]

    def variables(self) -> dict[str, str]:
        record = self.record()
        return record.variables if record else {}

    def killed_after(self, channel: str, record: RecordValue | None = None) -> str:
        """The node is lost; another (the same bench) takes the caller up. Its new channel."""
        self.asterisk_dies()
        self.asterisk_back()
        self.own("k1", epoch="7.2")
        return self.resume("k1", "7.2", {"c": "up"})["c"]


def test_these_menus_are_sound() -> None:
    assert complaints(MENUS) == []


def test_the_caller_hears_the_prompt_when_he_can_and_chooses() -> None:
    bench = IvrBench()
    channel = bench.enter()
    assert bench.said_menus() == ["sound:hello,sound:choose"]
    assert bench.asterisk.channels[channel]["state"] == "Up"
    bench.type(channel, "1")
    assert bench.operations("playbacks.stop"), "a digit ends the prompt"
    assert bench.waiting() == ["k1"] and bench.hears(channel) == "music"
    assert bench.variables()["HA_SKILLS"] == "german"
    record = bench.record()
    assert record is not None and record.stage == "queued" and record.queue_priority == 7


def test_silence_and_nonsense_use_up_tries() -> None:
    bench = IvrBench()
    channel = bench.enter()
    bench.type(channel, "8")
    assert bench.said_menus()[-1] == "sound:wrong,sound:hello,sound:choose"
    bench.prompt_ends()
    bench.sleep(4.9)
    assert len(bench.said_menus()) == 2
    bench.sleep(0.2)
    assert bench.said_menus()[-1] == "sound:hello,sound:choose"
    bench.prompt_ends()
    bench.sleep(5.1)
    assert bench.waiting() == ["k1"], "after the last try: `otherwise`"


def test_the_longest_choice_wins_and_time_decides_the_shorter() -> None:
    bench = IvrBench()
    channel = bench.enter()
    bench.type(channel, "44")
    assert bench.said(link.EndLeg, leg="c")
    bench = IvrBench()
    channel = bench.enter()
    bench.type(channel, "4")
    assert not bench.operations("channels.continueInDialplan")
    bench.sleep(2.1)
    (where,) = bench.operations("channels.continueInDialplan")
    assert (where["context"], where["extension"]) == ("shop", "200")


def test_digits_are_collected_and_a_request_carries_them() -> None:
    bench = IvrBench()
    bench.web = lambda request: Done(WebAnswer(200, b'{"variables":{"HA_CUSTOMER":"c17"}}'))
    channel = bench.enter()
    bench.type(channel, "21234#")
    (request,) = bench.requests
    body = msgspec.json.decode(request.body)
    assert (request.url, body["variables"]["ACCOUNT"], body["call"]) == ("http://pay.test/v1", "1234", "k1")
    assert request.key and bench.variables()["HA_CUSTOMER"] == "c17"
    assert bench.said_menus()[-1] == "sound:thanks"


@pytest.mark.parametrize(
    ("outcome", "heard"),
    [
        (Refused("no", 402), "sound:hello,sound:choose"),
        (Unreachable("refused"), "sound:hello,sound:choose"),
        (Done(WebAnswer(200)), "sound:thanks"),
    ],
)
def test_each_outcome_has_its_branch(outcome: Outcome, heard: str) -> None:
    bench = IvrBench()
    bench.web = lambda request: outcome
    bench.type(bench.enter(), "3")
    assert bench.said_menus()[-1] == heard and not bench.waiting()


def test_an_unknown_outcome_is_looked_up_and_never_sent_again() -> None:
    bench = IvrBench()
    answers = {"POST": [LOST], "GET": [Unknown("no answer"), Done(WebAnswer(200))]}
    bench.web = lambda request: answers["POST" if request.body else "GET"].pop(0)
    bench.type(bench.enter(), "3")
    bench.sleep(1)
    assert [bool(r.body) for r in bench.requests] == [True, False, False]
    assert len({r.key for r in bench.requests}) == 1 and bench.requests[0].key in bench.requests[1].url
    assert bench.said_menus()[-1] == "sound:thanks"


def test_a_lookup_that_knows_nothing_leads_to_unsure() -> None:
    bench = IvrBench()
    bench.web = lambda request: LOST if request.body else Refused("not here", 404)
    bench.type(bench.enter(), "3")
    assert bench.waiting() == ["k1"]


def test_nothing_with_effects_is_done_whose_intent_is_not_stored() -> None:
    bench = IvrBench()
    channel = bench.enter()
    bench.store_away()
    bench.type(channel, "3")
    assert not bench.requests
    assert bench.said_menus()[-1] == "sound:hello,sound:choose", "taken as failed: certainly not done"


def left_to_the_next_node(bench: IvrBench, moves: bool) -> None:
    """A step is not taken here: the call moves, or the menu is said again after a while."""
    if moves:
        bench.frame(link.CallMoved("k1", "7.2", "ast2"))
        assert "k1" not in bench.machine.core.calls and not bench.requests
    else:
        bench.sleep(2.1)
        assert bench.said_menus()[-1] == "sound:hello,sound:choose" and not bench.requests


@pytest.mark.parametrize("moves", [True, False])
def test_a_step_is_left_to_the_node_the_call_moves_to(moves: bool) -> None:
    """It moves on purpose, and the next node has written its record already: to take the step as failed
    would lead the caller where he is fetched back from at once."""
    bench = IvrBench()
    channel = bench.enter()
    record = bench.record()
    assert record is not None
    bench.store.put(bench.keys.record("k1"), msgspec.structs.replace(record, epoch="7.2", node="ast2#x"))
    here = f"ast1#{bench.asterisk.incarnation}"
    owner = OwnerValue(
        call="k1", node=here, epoch="7.2", edge="edge1", vip="v1", moving=True, moving_from=here
    )
    kv = bench.store.put(bench.keys.owner("k1"), owner)
    bench.post(StoreChanged(key=kv.key, value=kv, revision=kv.mod_revision))
    said = len(bench.said_menus())
    bench.type(channel, "3")
    assert not bench.requests and len(bench.said_menus()) == said and channel in bench.asterisk.channels
    left_to_the_next_node(bench, moves)


def tell(bench: IvrBench, key: str, value: Value) -> None:
    kv = bench.store.put(key, value)
    bench.post(StoreChanged(key=kv.key, value=kv, revision=kv.mod_revision))


@pytest.mark.parametrize("wrote", ["before", "late"])
def test_a_step_is_taken_where_the_move_came_to_nothing(wrote: str) -> None:
    """The next node wrote its record, and died: the call stays, and that record is not its newest."""
    bench = IvrBench()
    channel = bench.enter()
    record = bench.record()
    assert record is not None
    theirs = msgspec.structs.replace(record, epoch="7.2", node="ast2#x")
    here = f"ast1#{bench.asterisk.incarnation}"
    if wrote == "before":
        tell(bench, bench.keys.record("k1"), theirs)
    for epoch, moving in (("7.2", True), ("7.3", False)):
        owner = OwnerValue(
            call="k1", node=here, epoch=epoch, edge="edge1", vip="v1", moving=moving,
            moving_from=here if moving else "",
        )  # fmt: skip
        tell(bench, bench.keys.owner("k1"), owner)
        if moving:
            bench.type(channel, "9")
    if wrote == "late":
        tell(bench, bench.keys.record("k1"), theirs)
    bench.type(channel, "3")
    assert bench.requests and channel in bench.asterisk.channels
    record = bench.record()
    assert record is not None and (record.epoch, record.node) == ("7.1", here)
    assert record.ivr is not None and record.ivr.menu == "thanks"


@pytest.mark.parametrize("moves", [True, False])
def test_a_step_that_cannot_be_stored_waits_on_a_node_that_is_to_be_empty(moves: bool) -> None:
    """Its call may be on its way, and etcd, which is full by now, was behind in telling so."""
    bench = IvrBench()
    channel = bench.enter()
    kv = bench.store.put(bench.keys.drain(NODE), DrainValue(node=NODE))
    bench.post(StoreChanged(key=kv.key, value=kv, revision=kv.mod_revision))
    said = len(bench.said_menus())
    bench.store.up = False
    bench.type(channel, "3")
    assert not bench.requests and len(bench.said_menus()) == said
    left_to_the_next_node(bench, moves)


def test_another_node_goes_on_in_the_menu_with_the_digits_typed() -> None:
    bench = IvrBench()
    channel = bench.enter()
    bench.type(channel, "212")
    channel = bench.killed_after(channel)
    assert bench.said(link.Bridged, epoch="7.2")
    bench.type(channel, "34#")
    assert bench.variables()["ACCOUNT"] == "1234"


def test_the_prompt_is_said_again_where_nothing_was_typed() -> None:
    bench = IvrBench()
    channel = bench.enter()
    channel = bench.killed_after(channel)
    assert bench.said_menus() == ["sound:hello,sound:choose"] * 2
    assert bench.operations("channels.play")[-1]["channelId"] == channel


def test_the_prompt_waits_until_the_edge_lets_it_be_heard() -> None:
    bench = IvrBench()
    channel = bench.enter()
    bench.answers_media = False
    bench.killed_after(channel)
    assert len(bench.said_menus()) == 1
    wish = bench.said(link.WantMedia, epoch="7.2")[-1]
    bench.frame(link.MediaIs("k1", "7.2", "through", wish.request))
    assert len(bench.said_menus()) == 2


def test_a_digit_the_record_does_not_know_comes_from_the_edge_once() -> None:
    bench = IvrBench()
    channel = bench.enter()
    bench.type(channel, "2")
    stored = bench.store.data[bench.keys.record("k1")]
    bench.type(channel, "1")
    numbers = [frame.number for frame in bench.said(link.DigitHeard)]
    assert numbers == [1, 2]
    # the second digit was heard, and the node died before it was written
    bench.store.put(bench.keys.record("k1"), decode(stored.value, RecordValue))
    bench.store_back()
    channel = bench.killed_after(channel)
    for number, digit in ((1, "2"), (2, "1")):
        bench.frame(link.LegDigit("k1", "c", "7.2", digit, heard=number, again=True))
    bench.type(channel, "5#")
    assert bench.variables()["ACCOUNT"] == "15"


def test_digits_by_info_are_taken_once_each() -> None:
    bench = IvrBench()
    channel = bench.enter()
    bench.frame(link.LegDigit("k1", "c", "7.1", "2", told=1000))
    bench.frame(link.LegDigit("k1", "c", "7.1", "4", told=1001))
    bench.killed_after(channel)
    for told, digit in ((1000, "2"), (1001, "4"), (1002, "#")):
        bench.frame(link.LegDigit("k1", "c", "7.2", digit, told=told, again=True))
    assert bench.variables()["ACCOUNT"] == "4"


def test_a_step_under_way_is_looked_up_by_the_survivor_and_not_run_again() -> None:
    bench = IvrBench()
    bench.web = lambda request: None if request.body else Done(WebAnswer(200))
    channel = bench.enter()
    bench.type(channel, "3")
    record = bench.record()
    assert record is not None and record.ivr is not None and record.ivr.step == "choice:3"
    bench.killed_after(channel)
    assert [bool(r.body) for r in bench.requests] == [True, False]
    assert bench.said_menus()[-1] == "sound:thanks"


def test_a_harmless_step_is_sent_again_under_the_same_key_and_not_for_ever() -> None:
    bench = IvrBench()
    again = IvrStep(do="request", to="http://sms.test/", idempotent=True, unsure=SUPPORT)
    bench.store.put(bench.keys.ivr("main"), IvrMenuValue(menu="main", choices={"3": again}))
    bench.store_back()
    bench.web = lambda request: None
    channel = bench.enter()
    bench.type(channel, "3")
    bench.web = lambda request: LOST
    bench.killed_after(channel)
    assert len(bench.requests) == 4 and len({r.key for r in bench.requests}) == 1
    assert bench.waiting() == ["k1"], "it may have happened, and nobody says so"


def test_dialplan_with_effects_is_not_entered_twice() -> None:
    bench = IvrBench()
    channel = bench.enter()
    bench.type(channel, "4")
    bench.sleep(2.1)
    assert bench.record().stage == "dialplan"  # type: ignore[union-attr]
    bench.killed_after(channel)
    assert len(bench.operations("channels.continueInDialplan")) == 1
    assert bench.waiting() == ["k1"]


@pytest.mark.parametrize("lost", ["before", "in the dialplan"])
def test_the_dialplan_has_the_calls_variables_also_after_a_takeover(lost: str) -> None:
    """What the caller typed at one node is a variable of his channel at the next."""
    bench = IvrBench()
    bench.web = lambda request: Refused("unknown account", 404)
    channel = bench.enter()
    bench.type(channel, "2")
    bench.type(channel, "17#")
    if lost == "before":
        channel = bench.killed_after(channel)
    bench.machine.core.calls["k1"].to_dialplan("enough", "shop", "200")
    bench.sleep(0.1)
    if lost == "in the dialplan":
        channel = bench.killed_after(channel)
    (*_, went) = bench.operations("channels.continueInDialplan")
    assert (went["channelId"], went["context"], went["extension"]) == (channel, "shop", "200")
    given = {(p["channelId"], p["variable"]): p["value"] for p in bench.operations("channels.setChannelVar")}
    assert given[channel, "ACCOUNT"] == "17"


def test_steps_keep_their_numbers_over_a_visit_to_the_dialplan() -> None:
    bench = IvrBench()
    channel = bench.enter()
    bench.type(channel, "3")
    bench.type(channel, "1")
    first = bench.requests[0].key
    call = bench.machine.core.calls["k1"]
    bench.machine.core.carry_out(call, ("ivr", "main"))
    bench.sleep(0.1)
    bench.type(channel, "3")
    assert bench.requests[-1].key != first


def test_the_same_holds_when_only_the_app_restarts() -> None:
    bench = IvrBench()
    channel = bench.enter()
    bench.type(channel, "21")
    bench.restart_app()
    bench.link({"k1": link.CallAtEdge(epoch="7.1", legs={"c": link.LegAtEdge(state="answered")})})
    stopped = {p["playbackId"] for p in bench.operations("playbacks.stop")}
    assert bench.operations("channels.play")[-1]["playbackId"] in stopped, "the old app's prompt is ended"
    bench.type(channel, "7#")
    assert bench.variables()["ACCOUNT"] == "17"


def test_a_menu_that_is_not_there_leaves_the_caller_to_the_dialplan() -> None:
    bench = IvrBench()
    bench.trunk(verb="ivr,nowhere")
    (where,) = bench.operations("channels.continueInDialplan")
    assert where["label"] == "apology"


def test_going_in_circles_has_an_end() -> None:
    bench = IvrBench()
    channel = bench.enter()
    bench.type(channel, "9" * 120)
    assert bench.operations("channels.continueInDialplan")


def test_complaints_name_what_is_wrong() -> None:
    bad = {
        "m": IvrMenuValue(
            menu="m",
            choices={"x": SUPPORT, "1": IvrStep(do="menu", to="n"), "2": IvrStep(do="request", to="ftp://x"),
                     "3": IvrStep(do="fly"), "4": IvrStep(do="queue")},
            collect="A",
        )
    }  # fmt: skip
    text = "\n".join(complaints(bad))
    for word in ("'x'", "no menu 'n'", "http", "unsure", "'fly'", "to what", "collected"):
        assert word in text


def test_paths_lead_into_steps() -> None:
    main = MENUS["main"]
    assert step_at(main, "choice:3>done") == IvrStep(do="menu", to="thanks")
    assert step_at(main, "choice:7") is None and step_at(main, "choice:3>odd") is None


def written_meanwhile(bench: IvrBench, step: str, **changes: str) -> None:
    """Our Asterisk dies and is back; the node before us (epoch 7.1) is alive enough to write one more step,
    after our mirror was read."""
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.own("k1", epoch="7.2")
    stored = bench.record()
    assert stored is not None and stored.ivr is not None
    theirs = msgspec.structs.replace(stored.ivr, steps=stored.ivr.steps + 1, step=step)
    newer = msgspec.structs.replace(stored, ivr=theirs, node="ast2#x", **changes)
    bench.store.put(bench.keys.record("k1"), newer)


def test_a_step_the_last_node_began_at_the_last_moment_is_not_begun_again() -> None:
    bench = IvrBench()
    bench.web = lambda request: None if request.body else Done(WebAnswer(200))
    bench.enter()
    written_meanwhile(bench, step="choice:3")
    channel = bench.resume("k1", "7.2", {"c": "up"})["c"]
    assert channel and [bool(r.body) for r in bench.requests] == [False], "looked up, not asked for again"
    assert bench.said_menus()[-1] == "sound:thanks"


def test_a_caller_who_has_left_the_menu_since_our_mirror_was_read_is_not_in_it_again() -> None:
    """The step that led him out was done, and is not done again."""
    bench = IvrBench()
    bench.enter()
    written_meanwhile(bench, step="", stage="queued", queue="support")
    bench.resume("k1", "7.2", {"c": "up"})
    assert bench.machine.core.calls["k1"].stage == "queued" and not bench.requests
    assert len(bench.said_menus()) == 1, "no prompt again"


def test_a_step_begun_by_the_last_node_stays_written_while_it_is_looked_up() -> None:
    """The next node, should this one die too, must know of it."""
    bench = IvrBench()
    bench.web = lambda request: None
    bench.enter()
    written_meanwhile(bench, step="choice:3")
    bench.resume("k1", "7.2", {"c": "up"})
    written = bench.record()
    assert written is not None and written.ivr is not None
    assert (written.epoch, written.ivr.step) == ("7.2", "choice:3")


def taken_up_without_etcd(bench: IvrBench, **theirs: object) -> None:
    """The node before us, which died too, led the caller on and wrote that where we could not read it; then
    etcd is back."""
    bench.enter()
    bench.asterisk_dies()
    bench.asterisk_back()
    bench.store_away()
    bench.resume("k1", "7.3", {"c": "up"}, ended={"a1": "timeout"})
    assert bench.said_menus()[-1].startswith("sound:hello"), "all that is known here"
    stored = bench.record()
    assert stored is not None and stored.ivr is not None
    there = msgspec.structs.replace(stored.ivr, menu="", steps=stored.ivr.steps + 1, typed="")
    newer = msgspec.structs.replace(stored, epoch="7.2", node="ast2#x", ivr=there, variables={"CARD": "17"})
    bench.store.put(bench.keys.record("k1"), msgspec.structs.replace(newer, **theirs))
    bench.store_back()


def test_a_caller_who_was_led_out_waits_where_he_waited_when_his_record_can_be_read() -> None:
    """What the step did outside was done; at the menu he would do it once more."""
    bench = IvrBench()
    taken_up_without_etcd(bench, stage="queued", queue="support", entered=UTC0 + 5, queue_priority=7)
    call = bench.machine.core.calls["k1"]
    assert (call.stage, bench.waiting()) == ("queued", ["k1"]) and call.variables["CARD"] == "17"
    place = decode(bench.store.data[bench.keys.waiting("support", "k1")].value, WaitingValue)
    assert (place.entered, place.priority) == (UTC0 + 5, 7)
    written = bench.record()
    assert written is not None and (written.epoch, written.stage) == ("7.3", "queued")
    bench.sleep(60.0)
    assert call.stage == "queued" and len(bench.said_menus()) == 2, "nothing more is said to him"


def test_a_caller_who_was_led_out_goes_on_in_the_dialplan_when_his_record_can_be_read() -> None:
    bench = IvrBench()
    where = {"context": "shop", "extension": "200", "variables": {"HA_CONTINUE": "extension"}}
    taken_up_without_etcd(bench, stage="dialplan", **where)
    (went,) = bench.operations("channels.continueInDialplan")
    assert (went["context"], went["extension"]) == ("shop", "200")


@pytest.mark.parametrize("leg, dialled", [("a1", 0), ("a2", 1)], ids=["did not answer", "not called yet"])
def test_the_number_to_which_a_caller_was_led_is_called_once(leg: str, dialled: int) -> None:
    bench = IvrBench()
    party = LegValue(leg=leg, role="party", target="number:+4930", state="trying")
    taken_up_without_etcd(bench, stage="dialing", legs={"c": LegValue(leg="c", role="customer"), leg: party})
    assert len(bench.dialled()) == dialled
    assert ("k1" in bench.machine.core.calls) == bool(dialled), "he hears that nobody answered"


def test_a_caller_who_was_sent_home_is_when_his_record_can_be_read() -> None:
    bench = IvrBench()
    taken_up_without_etcd(bench, ending={"c": "16"})
    assert [frame.cause for frame in bench.said(link.EndLeg)] == ["16"]


def test_a_caller_who_was_led_to_another_menu_is_in_it_when_his_record_can_be_read() -> None:
    bench = IvrBench()
    taken_up_without_etcd(bench, ivr=IvrPlace("thanks", steps=2))
    assert bench.said_menus()[-1] == "sound:thanks"


@pytest.mark.parametrize("place", [False, True], ids=["no place", "a place"])
def test_nobody_is_rung_for_who_is_in_a_menu(place: bool) -> None:
    """The node before us led him into a queue without etcd, and of that wrote the agent it was to ring, and
    perhaps his place, but not the record."""
    bench = IvrBench(agents=("1001", "1002"))
    bench.enter()
    bench.asterisk_dies()
    bench.asterisk_back()
    since = UTC0 + bench.now
    part = AttemptOfAgent("t1", "k1", "support", "ast2#x", since=since, deadline=since + 5, entered=since)
    reserved = msgspec.structs.replace(bench.agent(), work="reserved", work_since=since, attempt=part)
    bench.store.put(bench.keys.agent("1001"), reserved)
    if place:
        waits = WaitingValue(call="k1", queue="support", entered=since, node="ast2#x")
        waits = msgspec.structs.replace(waits, attempt="t1", agent="1001")
        bench.store.put(bench.keys.waiting("support", "k1"), waits)
    bench.read("queues", "agents")
    bench.own("k1", epoch="7.2")
    channel = bench.resume("k1", "7.2", {"c": "up"})["c"]
    assert (bench.agent().work, bench.waiting()) == ("idle", []), "neither he nor a place is left behind"
    assert bench.machine.core.calls["k1"].stage == "ivr" and not bench.dialled()
    bench.type(channel, "1")
    bench.machine.check()
    assert bench.machine.core.calls["k1"].stage == "queued" and len(bench.dialled()) == 1
