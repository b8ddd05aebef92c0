//! Which node has which slots, as a node of the cluster tells.

use redis::Value;

use crate::connect::Trouble;
use crate::error::{Error, is_passing};
use crate::names::SLOTS;
use crate::settings::Address;

/// Slots from here to there, and whose they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The first slot.
    pub from: u16,
    /// The last slot.
    pub to: u16,
    /// The primary that has them.
    pub primary: Address,
}

/// What a node says of its cluster.
#[derive(Debug, PartialEq, Eq)]
pub struct Map {
    /// Whose the slots are.
    pub ranges: Vec<Range>,
    /// Whether the node belongs to the part of the cluster that works.
    pub healthy: bool,
}

/// The question to which [`understand`] understands the answer.
pub fn question() -> Vec<redis::Cmd> {
    let ask = |what| {
        let mut command = redis::cmd("CLUSTER");
        command.arg(what);
        command
    };
    vec![ask("SLOTS"), ask("INFO")]
}

/// What a node's replies say; `asked` is its own address. <https://valkey.io/commands/cluster-slots/>
pub fn understand(replies: &[Value], asked: &Address) -> Result<Map, Trouble> {
    let nonsense = || {
        let words = format!("what {asked} says of its cluster makes no sense");
        Trouble::Refused(Error::Unreachable(words))
    };
    let [slots, info] = replies else { return Err(nonsense()) };
    let ranges = match slots {
        Value::ServerError(error) => {
            let (code, detail) = (error.code(), error.details().unwrap_or_default());
            let detail = format!("{detail} ({asked} was asked for the slots of its cluster)");
            // One that loads its data, or is busy, tells a moment later.
            return Err(if is_passing(code) {
                Trouble::NotReady(format!("{code} {detail}"))
            } else {
                Trouble::Refused(Error::Refused { code: code.to_owned(), detail })
            });
        }
        Value::Array(ranges) => ranges,
        _ => return Err(nonsense()),
    };
    let ranges: Option<Vec<Range>> = ranges.iter().map(|entry| range(entry, asked)).collect();
    // Who may not ask is not told that anything is wrong.
    let healthy = text(info).is_none_or(|info| !info.contains("cluster_state:fail"));
    Ok(Map { ranges: ranges.ok_or_else(nonsense)?, healthy })
}

/// `[from, to, [host, port, ...], replicas ...]`
fn range(entry: &Value, asked: &Address) -> Option<Range> {
    let Value::Array(parts) = entry else { return None };
    let [Value::Int(from), Value::Int(to), Value::Array(primary), ..] = &parts[..] else {
        return None;
    };
    let [host, Value::Int(port), ..] = &primary[..] else { return None };
    let host = match host {
        Value::Nil => "",
        host => text(host)?,
    };
    let (from, to) = (u16::try_from(*from).ok()?, u16::try_from(*to).ok()?);
    let port = u16::try_from(*port).ok().filter(|port| *port != 0)?;
    if from > to || to >= SLOTS {
        return None;
    }
    Some(Range { from, to, primary: at(host, port, asked) })
}

/// The address that a node gives for another; without a host it means its own.
pub fn at(host: &str, port: u16, asked: &Address) -> Address {
    match asked {
        Address::Tcp(same, _) if matches!(host, "" | "?") => Address::Tcp(same.clone(), port),
        _ => Address::Tcp(host.to_owned(), port),
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn entry(from: i64, to: i64, host: Value, port: i64) -> Value {
        let node = Value::Array(vec![host, Value::Int(port), bulk("id")]);
        Value::Array(vec![Value::Int(from), Value::Int(to), node.clone(), node])
    }

    fn asked() -> Address {
        Address::Tcp("10.0.0.1".to_owned(), 7000)
    }

    fn info(state: &str) -> Value {
        bulk(&format!("cluster_enabled:1\r\ncluster_state:{state}\r\n"))
    }

    #[test]
    fn the_primary_of_a_range_is_the_first_that_is_named() {
        let slots = Value::Array(vec![
            entry(0, 5460, bulk("10.0.0.2"), 7001),
            entry(5461, 16383, bulk(""), 7002),
        ]);
        let map = understand(&[slots, info("ok")], &asked()).expect("a map");
        let at = |host: &str, port| Address::Tcp(host.to_owned(), port);
        let range = |from, to, primary| Range { from, to, primary };
        let expected =
            [range(0, 5460, at("10.0.0.2", 7001)), range(5461, 16383, at("10.0.0.1", 7002))];
        assert_eq!(map, Map { ranges: expected.into(), healthy: true });
    }

    #[test]
    fn a_node_that_is_cut_off_is_known_by_its_own_word() {
        let map = understand(&[Value::Array(vec![]), info("fail")], &asked()).expect("a map");
        assert!(!map.healthy);
    }

    #[test]
    fn what_is_no_map_is_an_error() {
        for slots in [
            bulk("slots"),
            Value::Array(vec![entry(0, 16384, bulk("h"), 1)]),
            Value::Array(vec![entry(2, 1, bulk("h"), 1)]),
            Value::Array(vec![entry(0, 1, bulk("h"), 0)]),
            Value::Array(vec![entry(0, 1, Value::Int(1), 1)]),
            Value::Array(vec![Value::Array(vec![])]),
        ] {
            assert!(understand(&[slots, info("ok")], &asked()).is_err());
        }
    }

    #[test]
    fn who_may_not_ask_is_told_so_and_who_comes_too_early_may_ask_again() {
        let says = |text: &str| {
            let reply = redis::parse_redis_value(format!("-{text}\r\n").as_bytes());
            understand(&[reply.expect("an error"), info("ok")], &asked())
        };
        for text in ["LOADING the dataset", "BUSY with a script", "CLUSTERDOWN", "MASTERDOWN x"] {
            assert!(matches!(says(text), Err(Trouble::NotReady(why)) if why.starts_with(text)));
        }
        let refused = says("NOPERM no permissions");
        assert!(
            matches!(refused, Err(Trouble::Refused(Error::Refused { code, .. })) if code == "NOPERM")
        );
    }

    proptest! {
        #[test]
        fn any_range_is_survived(from: i64, to: i64, port: i64) {
            let slots = Value::Array(vec![entry(from, to, bulk("h"), port)]);
            if let Ok(map) = understand(&[slots, Value::Nil], &asked()) {
                prop_assert!(map.ranges.iter().all(|range| range.from <= range.to && range.to < SLOTS));
            }
        }
    }
}
