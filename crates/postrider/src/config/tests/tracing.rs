//! `[tracing]`: off, on, and where spans may go.

use super::{BROKER, DATABASE, Place};
use crate::config::TracingConfig;

fn place(variables: &[(&str, &str)]) -> Place {
    Place::new(&[&[DATABASE, BROKER], variables].concat())
}

fn of(variables: &[(&str, &str)]) -> TracingConfig {
    place(variables).complete().tracing
}

#[test]
fn tracing_is_off_unless_an_endpoint_is_set_whatever_the_variables_of_opentelemetry_say() {
    let tracing = of(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317"),
        ("POSTRIDER_TRACING_SERVICE_NAME", "relay"),
        ("POSTRIDER_TRACING_TLS_MODE", "disable"),
    ]);
    assert!(tracing.collector.is_none());
}

#[cfg(feature = "opentelemetry")]
mod on {
    use super::*;
    use crate::config::tests::setting;
    use postrider_tls::Mode;

    const ENDPOINT: &str = "POSTRIDER_TRACING_ENDPOINT";
    const MODE: &str = "POSTRIDER_TRACING_TLS_MODE";

    #[test]
    fn spans_go_in_plain_text_to_this_machine_alone_unless_somebody_says_otherwise() {
        for url in [
            "http://localhost:4317",
            "http://127.0.0.1",
            "http://[::1]:4317/",
        ] {
            let collector = of(&[(ENDPOINT, url)]).collector.unwrap();
            assert!(collector.tls.is_none(), "{url}");
            assert_eq!(collector.port, 4317);
        }
        let problems = place(&[(ENDPOINT, "http://collector:4317")]).problems();
        for part in [
            "POSTRIDER_TRACING_ENDPOINT: is plain text (http://) to another machine",
            "write https://",
            "[tracing.tls] mode = \"disable\"",
            "POSTRIDER_TRACING_TLS_MODE=disable",
        ] {
            assert!(problems[0].contains(part), "{part} is not in {problems:?}");
        }
        let said = of(&[(ENDPOINT, "http://collector:4317"), (MODE, "disable")]);
        assert!(said.collector.unwrap().tls.is_none());
    }

    #[test]
    fn https_verifies_in_full_by_default_and_what_would_have_no_effect_is_refused() {
        let place = place(&[(ENDPOINT, "https://collector:443")]);
        let collector = place.complete().tracing.collector.unwrap();
        assert_eq!(collector.tls.unwrap().settings().mode, Mode::VerifyFull);
        assert_eq!(
            (collector.host.as_str(), collector.port),
            ("collector", 443)
        );
        let shown = place.load().unwrap();
        assert_eq!(
            setting(&shown, "tracing.tls", "mode").value,
            "\"verify-full\""
        );
        for (url, mode, part) in [
            (
                "https://collector",
                "disable",
                "says https://: keep one of the two",
            ),
            (
                "http://localhost",
                "require",
                "which is plain text: write https://",
            ),
        ] {
            let problems = super::place(&[(ENDPOINT, url), (MODE, mode)]).problems();
            assert!(problems[0].contains(part), "{problems:?}");
        }
        let name = ("POSTRIDER_TRACING_TLS_SERVER_NAME", "collector");
        let problems = super::place(&[(ENDPOINT, "http://localhost"), name]).problems();
        assert!(problems[0].contains("has no effect"), "{problems:?}");
    }

    #[test]
    fn what_is_no_endpoint_of_otlp_by_grpc_is_refused_without_being_quoted() {
        for (url, part) in [
            ("collector:4317", "is neither https:// nor http://"),
            ("grpc://collector", "is neither https:// nor http://"),
            ("nonsense", "is not a URL"),
            (
                "http://localhost:4318/v1/traces",
                "something behind the port",
            ),
            ("https://user:canary@collector", "a user name or a password"),
            (
                "https://collector?token=canary",
                "something behind the port",
            ),
        ] {
            let problems = place(&[(ENDPOINT, url)]).problems();
            assert!(problems[0].contains(part), "{url}: {problems:?}");
            assert!(!problems[0].contains("canary"), "{problems:?}");
        }
    }

    #[test]
    fn attributes_of_the_resource_are_read_as_opentelemetry_writes_them() {
        let key = "POSTRIDER_TRACING_RESOURCE_ATTRIBUTES";
        let tracing = of(&[(key, "a=1, b.c=x%2Cy%3D ,")]);
        let wanted = [("a", "1"), ("b.c", "x,y=")];
        assert_eq!(
            tracing.resource,
            wanted.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        for wrong in ["a", "=1", "a=%zz"] {
            let problems = place(&[(key, wrong)]).problems();
            assert!(problems[0].contains("NAME=VALUE"), "{wrong}: {problems:?}");
        }
    }
}

#[cfg(not(feature = "opentelemetry"))]
#[test]
fn a_program_without_opentelemetry_refuses_an_endpoint() {
    let problems = place(&[("POSTRIDER_TRACING_ENDPOINT", "http://localhost:4317")]).problems();
    assert!(problems[0].contains("opentelemetry"), "{problems:?}");
}
