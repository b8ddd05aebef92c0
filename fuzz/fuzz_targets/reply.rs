#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| seckill::fuzz::reply(data));
