//! The names of keys, and the names of the side keys that stand beside them.

use std::borrow::Cow;
use std::sync::Arc;

/// The name of a lock or a stock: any bytes, used verbatim.
pub type Name = Arc<[u8]>;

/// Every side key begins with this, so that `seckill:*` is all that an ACL has to add.
const PREFIX: &str = "seckill:";

/// How many hash slots a cluster has.
pub const SLOTS: u16 = 16384;

/// A key that stands beside `name`, in its slot: a session's record (`what` is the session's id), a
/// lock's fence, a queue ... `what` holds no colon.
///
/// `seckill:{tag}:<what>:<name>`, where `tag` hashes as `name` does.
#[must_use]
pub fn side_key(what: &str, name: &[u8]) -> Vec<u8> {
    let tag = hash_tag(name);
    let mut key = Vec::with_capacity(PREFIX.len() + tag.len() + what.len() + name.len() + 4);
    key.extend_from_slice(PREFIX.as_bytes());
    key.push(b'{');
    key.extend_from_slice(&tag);
    key.extend_from_slice(b"}:");
    key.extend_from_slice(what.as_bytes());
    key.push(b':');
    key.extend_from_slice(name);
    key
}

/// What stands between braces so that a side key falls into the slot of `name`.
///
/// Usually that is the name's own hash tag, or the name. A name with a `}` but no tag of its own
/// cannot stand between braces: two bytes that hash to its slot do instead.
fn hash_tag(name: &[u8]) -> Cow<'_, [u8]> {
    if let Some(tag) = own_tag(name) {
        return Cow::Borrowed(tag);
    }
    if !name.is_empty() && !name.contains(&b'}') {
        return Cow::Borrowed(name);
    }
    let slot = slot(name);
    // Each of four checksums means this slot; a test says that one at least needs no `}`.
    let tags = (0..4).map(|turn| two_bytes_with(slot + turn * SLOTS));
    Cow::Owned(tags.into_iter().find(|tag| !tag.contains(&b'}')).unwrap_or_default().to_vec())
}

/// The only two bytes with this checksum: CRC16/XMODEM is a shift register, here run backwards.
fn two_bytes_with(checksum: u16) -> [u8; 2] {
    const POLYNOMIAL: u16 = 0x1021;
    let back = |register: u16| match register & 1 {
        0 => register >> 1,
        _ => (register ^ POLYNOMIAL) >> 1 | 0x8000,
    };
    (0..16).fold(checksum, |register, _| back(register)).to_be_bytes()
}

/// The hash tag that a cluster sees in `name`: what is between the first `{` and the next `}`,
/// unless that is nothing. <https://valkey.io/topics/cluster-spec/>
fn own_tag(name: &[u8]) -> Option<&[u8]> {
    let open = name.iter().position(|&byte| byte == b'{')?;
    let rest = &name[open + 1..];
    let close = rest.iter().position(|&byte| byte == b'}')?;
    (close > 0).then(|| &rest[..close])
}

/// The hash slot of a key: CRC16/XMODEM of its tag, or of all of it, modulo 16384.
#[must_use]
pub fn slot(name: &[u8]) -> u16 {
    crc16::State::<crc16::XMODEM>::calculate(own_tag(name).unwrap_or(name)) % SLOTS
}

/// The key that whoever comes next in a queue for `lock` watches.
#[must_use]
pub fn place_key(id: &[u8; 32], lock: &[u8]) -> Vec<u8> {
    side_key(&format!("place-{}", String::from_utf8_lossy(id)), lock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(slot(b"123456789"), 0x31C3);
        assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
        assert_eq!(
            slot(b"foo{}{bar}"),
            crc16::State::<crc16::XMODEM>::calculate(b"foo{}{bar}") % SLOTS
        );
    }

    #[test]
    fn a_side_key_shows_the_name_it_belongs_to() {
        assert_eq!(side_key("id", b"stock"), b"seckill:{stock}:id:stock");
        assert_eq!(side_key("id", b"{sale}:7"), b"seckill:{sale}:id:{sale}:7");
    }

    #[test]
    fn two_bytes_reach_every_slot_without_a_closing_brace() {
        for wanted in 0..SLOTS {
            let tags = (0..4).map(|turn| two_bytes_with(wanted + turn * SLOTS));
            let tag = tags.into_iter().find(|tag| !tag.contains(&b'}')).expect("one of four");
            let checksum = crc16::State::<crc16::XMODEM>::calculate(&tag);
            assert_eq!(checksum % SLOTS, wanted);
        }
    }

    proptest! {
        #[test]
        fn a_side_key_lives_in_the_slot_of_its_name(name in proptest::collection::vec(prop_oneof![Just(b'{'), Just(b'}'), any::<u8>()], 1..20)) {
            prop_assert_eq!(slot(&side_key("00112233", &name)), slot(&name));
        }

        #[test]
        fn names_never_share_a_side_key(a in proptest::collection::vec(prop_oneof![Just(b'{'), Just(b'}'), Just(b':'), Just(b'a')], 1..6),
                                      b in proptest::collection::vec(prop_oneof![Just(b'{'), Just(b'}'), Just(b':'), Just(b'a')], 1..6)) {
            prop_assert_eq!(a == b, side_key("0123", &a) == side_key("0123", &b));
        }
    }
}
