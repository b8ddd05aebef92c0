//! What callers get from a batch is what they would have got one after the other.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::from(text.as_bytes())
}

fn update(key: &str, change: i64, token: Option<[u8; 32]>) -> Arc<Step> {
    let ask = Ask::Update { lock: name("lock"), key: name(key), change, token };
    step(ask)
}

fn step(ask: Ask) -> Arc<Step> {
    Arc::new(Step::orphan(ask, Instant::now() + Duration::from_mins(1), 0))
}

fn gather(queue: &mut Vec<Arc<Step>>) -> Batch {
    Batch::gather(1, queue, Instant::now())
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
    let now = Instant::now();
    let mut clock = ServerClock::new(0, now);
    let reply = Value::BulkString(format!("1 0 {answer}").into_bytes());
    let heard = batch.hear(index, reply, now, now, &mut clock, &mut late);
    (heard, late)
}

proptest! {
    #[test]
    fn each_caller_gets_what_a_sequential_model_gives(
        stock in prop_oneof![-5i64..30, Just(i64::MAX), Just(i64::MIN), any::<i64>()],
        changes in proptest::collection::vec(prop_oneof![Just(-1i64), -3i64..4, any::<i64>()], 1..40),
    ) {
        let steps: Vec<_> = changes.iter().map(|&change| update("stock", change, None)).collect();
        let mut queue = steps.clone();
        let mut batch = gather(&mut queue);
        prop_assert!(queue.is_empty());
        prop_assert_eq!(batch.calls(), 1);
        let mut batched = stock;
        let text = answer(&mut batched, &batch.calls[0].runs);
        prop_assert_eq!(hear(&mut batch, 0, &text).0, Heard::Answer);

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
    fn any_answer_is_survived(answer in "[CNWIHARFSL]?[ 0-9-]{0,12}", kind in 0..3) {
        let step = match kind {
            0 => update("stock", -1, None),
            1 => step(Ask::Acquire { lock: name("lock"), token: [b'a'; 32], lease: 1 }),
            _ => step(Ask::Release { lock: name("lock"), token: [b'a'; 32] }),
        };
        let mut batch = gather(&mut vec![Arc::clone(&step)]);
        let (_, late) = hear(&mut batch, 0, &answer);
        prop_assert!(step.reply().is_some() || late.len() == 1);
    }
}

#[test]
fn a_crowd_with_one_wish_is_one_run() {
    let mut queue: Vec<_> = (0..1000).map(|_| update("stock", -1, None)).collect();
    let batch = gather(&mut queue);
    assert_eq!(batch.calls[0].runs, [(-1, 1000)]);
}

#[test]
fn a_batch_holds_one_call_for_each_record() {
    let mine = Some([b'a'; 32]);
    let mut queue = vec![
        update("a", -1, None),
        update("b", -1, None),
        update("a", -1, mine),
        update("a", -2, None),
        step(Ask::Incr { key: name("b"), change: 1 }),
    ];
    let batch = gather(&mut queue);
    assert_eq!(batch.calls(), 2);
    assert_eq!(batch.calls[0].runs, [(-1, 1), (-2, 1)]);
    // The holder's own change and the increment share their records with what goes first.
    assert_eq!(queue.len(), 2);
    assert_eq!(gather(&mut queue).calls(), 2);
}

#[test]
fn who_has_left_or_is_out_of_time_is_not_taken_along() {
    let (gone, here) = (update("a", -1, None), update("a", -1, None));
    gone.leave();
    let ask = Ask::Incr { key: name("a"), change: 1 };
    let over = Arc::new(Step::orphan(ask, Instant::now(), 0));
    let mut queue = vec![gone, here, over];
    let batch = gather(&mut queue);
    assert_eq!((batch.steps(), queue.len()), (1, 0));
}

#[test]
fn the_deadline_of_a_batch_is_also_that_of_a_caller_who_has_left() {
    let now = Instant::now();
    let ask = Ask::Incr { key: name("a"), change: 1 };
    let hasty = Arc::new(Step::orphan(ask.clone(), now + Duration::from_secs(1), 0));
    let patient = Arc::new(Step::orphan(ask, now + Duration::from_mins(1), 0));
    let mut batch = gather(&mut vec![Arc::clone(&hasty), patient]);
    hasty.leave();
    let (clock, mut out) = (ServerClock::new(0, now), Vec::new());
    batch.pack(now, Duration::from_mins(1), "session", &clock, &mut out);
    let sent = String::from_utf8(out).expect("all ASCII");
    assert!(sent.contains("\r\n1000000\r\n"), "{sent}");
}

#[test]
fn a_late_batch_goes_back_to_its_callers_to_try_again() {
    let step = update("a", -1, None);
    let mut batch = gather(&mut vec![Arc::clone(&step)]);
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
