//! Reading Prometheus' text format, as far as tests need it.

/// The value of the first series of that name whose labels include `labels`.
pub fn value(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (series, value) = match rest.strip_prefix('{') {
            // A label's value may hold anything, a brace too; the number after it cannot.
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let series = format!(",{series},");
        labels
            .iter()
            .all(|(label, wanted)| {
                let wanted = wanted
                    .replace('\\', "\\\\")
                    .replace('"', "\\\"")
                    .replace('\n', "\\n");
                series.contains(&format!(",{label}=\"{wanted}\","))
            })
            .then(|| value.split_whitespace().next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::value;

    const TEXT: &str = "# HELP up Up.\n# TYPE up gauge\nup 1\nup_total{a=\"x\",b=\"}, \\\"\"} 2\nup_total{a=\"y\"} 3.5\n";

    #[test]
    fn a_series_is_found_by_its_name_and_labels() {
        assert_eq!(value(TEXT, "up", &[]), Some(1.0));
        assert_eq!(value(TEXT, "up_total", &[("a", "y")]), Some(3.5));
        assert_eq!(value(TEXT, "up_total", &[("b", "}, \"")]), Some(2.0));
        assert_eq!(value(TEXT, "up_total", &[("a", "z")]), None);
        assert_eq!(value(TEXT, "u", &[]), None);
    }
}
