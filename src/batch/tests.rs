//! What callers get from a batch is what they would have got one after the other.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::caller::Caller;
use crate::clock;
use crate::script_call::{MOST_RUNS, cause, refusal};
use crate::step::{Ask, Extension, Right};

fn name(text: &str) -> Name {
    Name::from(text.as_bytes())
}

fn update(key: &str, change: i64, right: Right) -> Arc<Step> {
    step(Ask::Update { lock: name("lock"), key: name(key), change, right })
}

fn step(ask: Ask) -> Arc<Step> {
    step_until(ask, clock::now() + Duration::from_mins(1))
}

fn step_until(ask: Ask, deadline: Instant) -> Arc<Step> {
    Arc::new(Step::new(ask, deadline, 0, Caller::Nobody))
}

fn gather(backlog: &mut VecDeque<Arc<Step>>) -> Batch {
    Batch::gather(&"session".into(), 1, Vec::new(), backlog, clock::now())
}

/// What `scripts/stock.lua` answers, in the plainest words.
fn answer(stock: &mut i64, runs: &[(i64, usize)]) -> String {
    let mut words = vec!["C".to_owned()];
    for &(change, count) in runs {
        let mut granted = 0;
        while granted < count && stock.checked_add(change).is_some_and(|after| after >= 0) {
            *stock += change;
            granted += 1;
        }
        words.push(format!("{granted} {stock}"));
    }
    words.join(" ")
}

fn hear(batch: &mut Batch, index: usize, answer: &str) -> (Heard, Vec<Arc<Step>>) {
    let mut late = Vec::new();
    let now = clock::now();
    let mut clock = ServerClock::new(0, now);
    let reply = Value::BulkString(format!("1 0 {answer}").into_bytes());
    let heeded = Heeded { reply, sent: now, received: now };
    let heard = batch.hear(index, heeded, &mut clock, Follows::Nothing, &mut late);
    (heard, late)
}

proptest! {
    #[test]
    fn each_caller_gets_what_a_sequential_model_gives(
        stock in prop_oneof![-5i64..30, Just(i64::MAX), Just(i64::MIN), any::<i64>()],
        changes in proptest::collection::vec(prop_oneof![Just(-1i64), -3i64..4, any::<i64>()], 1..40),
    ) {
        let steps: Vec<_> = changes.iter().map(|&change| update("stock", change, Right::Free)).collect();
        let mut queue: VecDeque<_> = steps.iter().cloned().collect();
        let mut batch = gather(&mut queue);
        prop_assert!(queue.is_empty());
        prop_assert_eq!(batch.calls(), 1);
        let mut batched = stock;
        let text = answer(&mut batched, &batch.calls[0].runs);
        prop_assert_eq!(hear(&mut batch, 0, &text).0, Heard::Written);

        let mut model = stock;
        for (step, change) in steps.iter().zip(changes) {
            let expected = match model.checked_add(change) {
                Some(after) if after >= 0 => {
                    model = after;
                    Reply::Changed
                }
                Some(_) => Reply::Insufficient { available: model },
                None => refusal(change, model),
            };
            prop_assert_eq!(step.reply(), Some(&expected));
        }
        prop_assert_eq!(batched, model);
    }

    /// Whatever a server says, it is taken for an answer or for nonsense, and nobody panics or is
    /// left without a reply.
    #[test]
    fn any_answer_is_survived(answer in "[CNWIHARFSLXQET]?[ 0-9-]{0,40}", kind in 0..5) {
        let step = match kind {
            0 => update("stock", -1, Right::Free),
            1 => step(Ask::Acquire {
                lock: name("lock"),
                token: name("token"),
                lease: Some(1),
                again: false,
                fenced: true,
                attempt: [b'a'; 32],
                place: None,
            }),
            2 => {
                let (lock, token) = (name("lock"), Some(name("token")));
                step(Ask::Release { lock, token, by: None, place: None })
            },
            3 => {
                let (lock, token) = (name("lock"), name("token"));
                step(Ask::Extend { lock, token, ms: 1, how: Extension::Add })
            }
            _ => step(Ask::Holder { lock: name("lock") }),
        };
        let mut batch = gather(&mut VecDeque::from([Arc::clone(&step)]));
        let (_, late) = hear(&mut batch, 0, &answer);
        prop_assert!(step.reply().is_some() || late.len() == 1);
    }
}

#[test]
fn a_crowd_with_one_wish_is_one_run() {
    let mut queue: VecDeque<_> = (0..1000).map(|_| update("stock", -1, Right::Free)).collect();
    let batch = gather(&mut queue);
    assert_eq!(batch.calls[0].runs, [(-1, 1000)]);
}

#[test]
fn a_batch_holds_one_call_for_each_record() {
    let mine = Right::Own(name("token"));
    let mut queue = VecDeque::from([
        update("a", -1, Right::Free),
        update("b", -1, Right::Free),
        update("a", -1, mine),
        update("a", -2, Right::Free),
        step(Ask::Incr { key: name("b"), change: 1 }),
    ]);
    let batch = gather(&mut queue);
    assert_eq!(batch.calls(), 2);
    assert_eq!(batch.calls[0].runs, [(-1, 1), (-2, 1)]);
    // The holder's own change and the increment share their records with what goes first.
    assert_eq!(queue.len(), 2);
    assert_eq!(gather(&mut queue).calls(), 2);
}

#[test]
fn nobody_goes_before_who_found_no_room() {
    // Each change differs from the one before it: as many runs as a call may have, and one more.
    let changes = (0..=MOST_RUNS).map(|index| if index % 2 == 0 { -1 } else { -2 });
    let mut queue: VecDeque<_> = changes.map(|change| update("a", change, Right::Free)).collect();
    let last = queue.back().cloned().expect("there");
    queue.push_back(update("a", -2, Right::Free));
    let batch = gather(&mut queue);
    assert_eq!((batch.steps(), queue.len()), (MOST_RUNS, 2));
    assert!(Arc::ptr_eq(&queue[0], &last), "in order of arrival");
}

#[test]
fn a_backlog_of_any_length_is_looked_at_a_batch_at_a_time() {
    let mut queue: VecDeque<_> =
        (0..3 * MOST_STEPS).map(|_| update("a", -1, Right::Free)).collect();
    assert_eq!(gather(&mut queue).steps(), MOST_STEPS);
    let keys = (0..3 * MOST_STEPS).map(|key| update(&key.to_string(), -1, Right::Free));
    let mut queue: VecDeque<_> = keys.collect();
    assert_eq!(gather(&mut queue).steps(), MOST_CALLS);
    assert_eq!(queue.len(), 3 * MOST_STEPS - MOST_CALLS);
    assert_eq!(queue[0].ask, update(&MOST_CALLS.to_string(), -1, Right::Free).ask);
}

#[test]
fn who_has_left_or_is_out_of_time_is_not_taken_along() {
    let (gone, here) = (update("a", -1, Right::Free), update("a", -1, Right::Free));
    gone.leave();
    let ask = Ask::Incr { key: name("a"), change: 1 };
    let over = step_until(ask, clock::now());
    let mut queue = VecDeque::from([gone, here, over]);
    let batch = gather(&mut queue);
    assert_eq!((batch.steps(), queue.len()), (1, 0));
}

#[test]
fn what_was_not_run_and_left_is_not_sent_for_the_sake_of_a_batch_in_doubt() {
    let (left, other) = (update("a", -1, Right::Free), update("b", -1, Right::Free));
    let mut batch = gather(&mut VecDeque::from([Arc::clone(&left), other]));
    let (now, mut out, mut late) = (clock::now(), Vec::new(), Vec::new());
    let mut clock = ServerClock::new(0, now);
    assert_eq!(
        batch.pack(now, Duration::from_secs(1), &clock, &mut out).expected,
        [0, 1].map(Expected::Call)
    );
    let unknown = redis::parse_redis_value(b"-NOSCRIPT No matching script\r\n").expect("an error");
    assert_eq!(
        batch.hear(
            0,
            Heeded { reply: unknown, sent: now, received: now },
            &mut clock,
            Follows::Nothing,
            &mut late
        ),
        Heard::Again
    );
    batch.doubt(); // the connection broke before the other's reply
    assert!(!left.leave(), "the server has said that it did not run it");
    assert_eq!(
        batch.pack(now, Duration::from_secs(1), &clock, &mut out).expected,
        [1].map(Expected::Call)
    );
}

#[test]
fn what_came_too_late_for_its_lease_is_not_asked_for_again() {
    let now = clock::now();
    let ask = |ends| {
        let (key, right) = (name("a"), Right::Elsewhere);
        let ask = Ask::Update { lock: Arc::clone(&key), key, change: -1, right };
        let deadline = now + Duration::from_secs(5);
        Arc::new(Step::new(ask, deadline, 0, Caller::Nobody).with_right_until(ends))
    };
    let (over, lasting) = (ask(Some(now)), ask(Some(now + Duration::from_secs(5))));
    let mut both = VecDeque::from([Arc::clone(&over), Arc::clone(&lasting)]);
    let before = now.checked_sub(Duration::from_millis(1)).expect("a while ago");
    let mut batch = Batch::gather(&"session".into(), 1, Vec::new(), &mut both, before);
    batch.pack(now, Duration::from_secs(1), &ServerClock::new(0, now), &mut Vec::new());
    assert!(!over.leave_unsent(), "it was sent");
    let (_, late) = hear(&mut batch, 0, "L");
    assert_eq!((over.reply(), lasting.reply()), (Some(&Reply::Late), None));
    assert!(matches!(&late[..], [step] if Arc::ptr_eq(step, &lasting)));
    assert!(lasting.leave_unsent(), "it was not done");

    let over = ask(Some(now));
    let batch = gather(&mut VecDeque::from([Arc::clone(&over), update("b", -1, Right::Free)]));
    assert_eq!((batch.calls(), over.reply()), (1, Some(&Reply::Late)), "it makes nobody late");
}

/// The deadline of a batch with a step until each of these, on a server whose time begins now. The
/// first caller leaves, no answer comes, and a second later the batch is asked for again.
fn deadline_of(ends: [Duration; 2], patience: Duration) -> i64 {
    let now = clock::now();
    let ask = Ask::Incr { key: name("a"), change: 1 };
    let steps = ends.map(|end| step_until(ask.clone(), now + end));
    let mut batch = gather(&mut VecDeque::from(steps.clone()));
    let (clock, mut out) = (ServerClock::new(0, now), Vec::new());
    batch.pack(now, patience, &clock, &mut out);
    out.clear();
    assert!(steps[0].leave(), "it is under way");
    batch.doubt();
    batch.pack(now + Duration::from_secs(1), patience, &clock, &mut out);
    let sent = String::from_utf8(out).expect("all ASCII");
    let words: Vec<_> = sent.split("\r\n").filter(|word| !word.starts_with('$')).collect();
    // EVALSHA, the hash, 2, two keys, the number, the deadline.
    words[7].parse().expect("a number")
}

#[test]
fn what_was_not_sent_when_its_caller_left_never_is() {
    let changes = [-1, -1, -2, -1];
    let steps = changes.map(|change| update("a", change, Right::Free));
    let alone = update("b", -1, Right::Free);
    let mut batch = gather(&mut steps.iter().chain([&alone]).cloned().collect());
    assert!(!steps[2].leave() && !alone.leave(), "nothing is under way");
    let (now, mut out) = (clock::now(), Vec::new());
    let clock = ServerClock::new(0, now);
    assert_eq!(
        batch.pack(now, Duration::from_secs(1), &clock, &mut out).expected,
        [Expected::Call(0)]
    );
    assert_eq!(batch.calls[0].runs, [(-1, 3)]);
    assert!(steps[0].leave(), "this one is");
    batch.doubt();
    batch.pack(now, Duration::from_secs(1), &clock, &mut out);
    assert_eq!(batch.calls[0].runs, [(-1, 3)], "asked for as it was");
}

#[test]
fn the_deadline_of_a_batch_is_also_that_of_a_caller_who_has_left() {
    let ends = [Duration::from_secs(3), Duration::from_mins(1)];
    assert_eq!(deadline_of(ends, Duration::from_mins(1)), 3_000_000);
}

#[test]
fn what_a_caller_left_is_not_done_long_after_for_the_sake_of_others() {
    let ends = [Duration::from_mins(1), Duration::from_mins(1)];
    let patience = Duration::from_millis(500);
    let limit = i64::try_from(patience.as_micros()).expect("small");
    assert!((limit..limit + 400_000).contains(&deadline_of(ends, patience)));
}

#[test]
fn a_late_batch_goes_back_to_its_callers_to_try_again() {
    let step = update("a", -1, Right::Free);
    let mut batch = gather(&mut VecDeque::from([Arc::clone(&step)]));
    let (heard, late) = hear(&mut batch, 0, "L");
    assert_eq!((heard, late.len()), (Heard::Answer, 1));
    assert!(batch.answered() && step.wanted());
}

#[test]
fn the_error_of_a_script_is_found_inside_the_words_of_redis_6() {
    let wrapped = "Error running script (call to f_0): @user_script:9: @user_script: 9: -OOM command not allowed";
    assert_eq!(cause("ERR", wrapped), ("OOM", "command not allowed"));
    assert_eq!(cause("OOM", "command not allowed"), ("OOM", "command not allowed"));
}

fn careful(key: &str) -> Arc<Step> {
    let ask = Ask::Update { lock: name("lock"), key: name(key), change: -1, right: Right::Free };
    let step = Step::new(ask, clock::now() + Duration::from_mins(1), 0, Caller::Nobody);
    Arc::new(step.with_safety(Safety { replicas: 1, aof: true }))
}

#[test]
fn a_proof_takes_time_only_when_the_calls_have_their_answers() {
    let mut batch = gather(&mut VecDeque::from([careful("a")]));
    let (now, patience) = (clock::now(), Duration::from_secs(1));
    let mut packed = batch.pack(now, patience, &ServerClock::new(0, now), &mut Vec::new());
    let proofs = [About::Replicas, About::Aof].map(Expected::Safety);
    assert_eq!(packed.expected, [&[Expected::Call(0)][..], &proofs].concat());
    assert_eq!(packed.end(), now + patience, "a dead connection is found out as soon as any");
    packed.expected.pop_front();
    assert_eq!(packed.end(), now + 3 * patience);
    packed.expected.pop_front();
    assert_eq!(packed.end(), now + 3 * patience);
}

#[test]
fn what_could_not_be_proved_before_the_connection_broke_can_be_after() {
    let step = careful("a");
    let mut batch = gather(&mut VecDeque::from([Arc::clone(&step)]));
    let (now, patience) = (clock::now(), Duration::from_secs(1));
    let clock = ServerClock::new(0, now);
    let packed = batch.pack(now, patience, &clock, &mut Vec::new());
    hear(&mut batch, 0, "? C 1 9");
    batch.doubt();
    hear(&mut batch, 0, "C 1 9");
    let mut proof = Proof::default();
    proof.hear(About::Replicas, &Value::Int(1)).expect("an answer");
    let on_disk = Value::Array(vec![Value::Int(1), Value::Int(0)]);
    proof.hear(About::Aof, &on_disk).expect("an answer");
    batch.proved(&proof, &packed);
    assert_eq!(step.reply(), Some(&Reply::Changed));
}
