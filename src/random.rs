//! Randomness from the kernel, per use: a generator of our own would repeat itself in every child of
//! a fork.

/// 16 random bytes in hexadecimal: a token, a session's id.
pub fn hex() -> String {
    hex_bytes().iter().map(|&byte| char::from(byte)).collect()
}

/// 16 random bytes as 32 hexadecimal digits.
pub fn hex_bytes() -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut bytes = [0; 16];
    fill(&mut bytes);
    let mut text = [0; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

/// A number below `end` (which is not 0); good enough to spread things, not to keep a secret.
pub fn below(end: u32) -> u32 {
    let mut bytes = [0; 4];
    fill(&mut bytes);
    u32::from_le_bytes(bytes) % end
}

fn fill(bytes: &mut [u8]) {
    #[cfg(test)]
    if crate::stage::fill(bytes) {
        return;
    }
    // Fails only on kernels without getrandom(2) and without /dev/urandom. Going on with a token that
    // somebody could share would be worse than ending here.
    assert!(getrandom::fill(bytes).is_ok(), "seckill: the operating system has no randomness");
}
