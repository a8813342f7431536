//! Headers and properties of any text: refused, or measured as they are sent and read back as they were meant.
//!
//! Four bytes of numbers, then the texts, separated by zero bytes; the last is the headers.

#![no_main]

use libfuzzer_sys::fuzz_target;
use postrider_rabbitmq::properties_of_rows::{AnyRow, encodes_or_is_refused};

fuzz_target!(|data: &[u8]| {
    let Some(([frame, priority, expiration, scale], texts)) = data.split_first_chunk() else {
        return;
    };
    let Ok(texts) = std::str::from_utf8(texts) else {
        return;
    };
    let mut parts = texts.splitn(9, '\0');
    let texts: [&str; 8] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    encodes_or_is_refused(&AnyRow {
        headers: parts.next().unwrap_or("{}"),
        texts,
        priority: (priority % 2 == 0).then_some(*priority),
        expiration_ms: (expiration % 2 == 0).then_some(u64::from(*expiration) << (scale % 57)),
        frame_max: [4096, 131_072, u32::MAX][usize::from(frame % 3)],
    });
});
