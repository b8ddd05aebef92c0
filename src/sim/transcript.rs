//! The model answers as real servers do: `transcript.txt` was written by one, and the Python tests hold
//! it against all of them (`tests/test_simulator_model.py`).

use super::lua;
use super::store::{Reply, Store};
use crate::script::Script;

/// How an answer reads in the file, where times are rounded and fences left out.
fn shown(words: &[Vec<u8>], reply: &Reply) -> String {
    let text = |text: &[u8]| String::from_utf8(text.to_vec()).expect("ASCII");
    match reply {
        Reply::Error(_) => "error".to_owned(),
        Reply::Nil => "nil".to_owned(),
        Reply::Int(number) if words[0] == b"PTTL" => rounded(*number),
        Reply::Int(number) => number.to_string(),
        Reply::Status(status) => (*status).to_owned(),
        Reply::List(items) => {
            let items: Vec<_> = items.iter().map(|item| shown(&[Vec::new()], item)).collect();
            format!("[{}]", items.join(" "))
        }
        Reply::Text(answer) if words[0].starts_with(b"@") => said(&text(answer)),
        Reply::Text(answer) => text(answer),
    }
}

fn said(answer: &str) -> String {
    let mut words: Vec<_> = answer.split(' ').skip(2).map(str::to_owned).collect();
    if words[0] == "A" {
        words.truncate(1);
    } else if matches!(&*words[0], "H" | "Q" | "E") {
        words[1] = rounded(words[1].parse().expect("milliseconds"));
    }
    words.join(" ")
}

fn rounded(ms: i64) -> String {
    if ms <= 0 { ms.to_string() } else { ((ms + 9_999) / 10_000).to_string() }
}

fn run(store: &mut Store, words: &[Vec<u8>]) -> Reply {
    let script = match &*words[0] {
        b"@stock" => Script::Stock,
        b"@acquire" => Script::Acquire,
        b"@release" => Script::Release,
        b"@extend" => Script::Extend,
        b"@holder" => Script::Holder,
        _ => {
            store.writes = 0;
            return store.call(words);
        }
    };
    let hash = lua::hash(script.source().text.as_bytes());
    let count: usize = String::from_utf8_lossy(&words[1]).parse().expect("a number of keys");
    let (keys, args) = words[2..].split_at(count);
    lua::run(store, &hash, keys, args)
}

#[test]
fn the_model_answers_as_servers_do() {
    let mut store = Store::default();
    store.now = 1_700_000_000_000_000;
    let mut lines = include_str!("transcript.txt").lines();
    let mut number = 0;
    while let (Some(asked), Some(answered)) = (lines.next(), lines.next()) {
        number += 2;
        let word = |word: &str| if word == "''" { Vec::new() } else { word.as_bytes().to_vec() };
        let words: Vec<_> = asked[2..].split(' ').map(word).collect();
        let reply = run(&mut store, &words);
        assert_eq!(shown(&words, &reply), answered[2..], "line {number}: {asked}");
        // A millisecond each.
        store.now += 1000;
    }
    assert!(number > 1000);
}
