//! The context in which a row was inserted, as the application left it in the row's headers: W3C Trace Context, level 2.

use std::borrow::Cow;

use postrider_core::Headers;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The W3C's `sampled` flag.
const SAMPLED: u8 = 1;
/// A longer `tracestate` is left out of the link: 512 characters are what everybody has to hand on, and the queue is
/// bounded by spans. The header itself travels whole.
const LONGEST_STATE: usize = 512;

/// The span that inserted the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inserting {
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: [u8; 8],
    /// As the row has them.
    pub(crate) flags: u8,
    /// Empty when the row has none that can be used.
    pub(crate) state: Box<str>,
}

/// The two headers, whatever type they have; all the others are passed over.
#[derive(Deserialize)]
struct ContextHeaders<'a> {
    #[serde(borrow)]
    traceparent: Option<&'a RawValue>,
    #[serde(borrow)]
    tracestate: Option<&'a RawValue>,
}

impl Inserting {
    /// The context of a row with these headers; `None` when they hold none that is valid.
    pub(crate) fn of(headers: &Headers) -> Option<Self> {
        if headers.is_empty() {
            return None;
        }
        let said: ContextHeaders<'_> = serde_json::from_str(headers.as_json()).ok()?;
        let mut inserting = Self::parse(&string(said.traceparent?)?)?;
        if let Some(state) = said.tracestate.and_then(string)
            && is_state(&state)
        {
            inserting.state = state.into();
        }
        Some(inserting)
    }

    fn parse(traceparent: &str) -> Option<Self> {
        let (version, rest) = traceparent.split_once('-')?;
        let [version] = hex(version)?;
        let (trace_id, rest) = rest.split_once('-')?;
        let (span_id, rest) = rest.split_once('-')?;
        // Versions to come may have more behind another dash.
        let flags = match (version, rest.split_once('-')) {
            (0xff, _) | (0, Some(_)) => return None,
            (_, Some((flags, _))) => flags,
            (_, None) => rest,
        };
        let (trace_id, span_id, [flags]) = (hex(trace_id)?, hex(span_id)?, hex(flags)?);
        (trace_id != [0; 16] && span_id != [0; 8]).then(|| Self {
            trace_id,
            span_id,
            flags,
            state: Box::default(),
        })
    }

    pub(crate) fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Borrowed<'_>>(value.get())
        .ok()
        .map(|text| text.0)
}

/// Exactly so many bytes, in lower case: W3C has it so.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            *byte = *byte << 4 | value;
        }
    }
    Some(bytes)
}

/// A list of `key=value`, as far as it matters to those who only show it.
fn is_state(text: &str) -> bool {
    text.len() <= LONGEST_STATE
        && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        && text.split(',').map(str::trim).all(|member| {
            member.is_empty()
                || member
                    .split_once('=')
                    .is_some_and(|(key, _)| !key.is_empty())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn of(json: &str) -> Option<Inserting> {
        Inserting::of(&Headers::from_json(json))
    }

    #[test]
    fn the_context_is_read_from_among_the_other_headers() {
        let found = of(&format!(
            r#"{{"a": [1, {{"traceparent": "x"}}], "traceparent": "{PARENT}", "tracestate": "shop=1,other=a=b", "z": null}}"#
        ))
        .unwrap();
        assert_eq!(
            found.trace_id,
            0x0af7651916cd43dd8448eb211c80319c_u128.to_be_bytes()
        );
        assert_eq!(found.span_id, 0xb7ad6b7169203331_u64.to_be_bytes());
        assert!(found.is_sampled());
        assert_eq!(&*found.state, "shop=1,other=a=b");
        let unsampled =
            of(r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}"#);
        assert!(!unsampled.unwrap().is_sampled());
    }

    #[test]
    fn what_w3c_calls_invalid_is_no_context() {
        for parent in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert_eq!(Inserting::parse(parent), None, "{parent}");
        }
        for headers in [
            "{}",
            r#"{"traceparent": 7}"#,
            r#"{"traceparent": null}"#,
            r#"{"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#,
        ] {
            assert_eq!(of(headers), None, "{headers}");
        }
    }

    #[test]
    fn a_version_to_come_is_read_as_far_as_it_is_known() {
        let parent = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more";
        assert!(Inserting::parse(parent).unwrap().is_sampled());
    }

    #[test]
    fn a_state_that_cannot_be_one_is_left_out_and_the_rest_stands() {
        for state in [
            "7",
            "\"no list\"",
            "\"=1\"",
            "\"a=\\n\"",
            &format!("\"a={}\"", "x".repeat(600)),
        ] {
            let found = of(&format!(
                r#"{{"traceparent": "{PARENT}", "tracestate": {state}}}"#
            ));
            assert_eq!(&*found.unwrap().state, "", "{state}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*", parent in "[0-9a-f-]{0,60}") {
            Inserting::parse(&text);
            Inserting::parse(&parent);
            of(&text);
        }
    }
}
