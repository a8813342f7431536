//! Bars with their spread, as SVG.
//!
//! A bar ends at the median; the line through its end goes from the lowest to the highest measurement.

use std::{error::Error, fs, path::Path};

use anyhow::{Context, Result, anyhow};
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{report::grouped, statistics::Spread};

const WIDTH: u32 = 960;
const HEIGHT: u32 = 420;
const FONT: &str = "sans-serif";

/// At the right, for the names of the series.
const LEGEND_WIDTH: u32 = 230;

/// At the left, for the axis.
const AXIS_WIDTH: u32 = 70;

const MARGIN: u32 = 10;

/// Of a line of a label.
const LINE_HEIGHT: u32 = 16;

/// Of a letter, roughly: without a font's file nobody knows.
const LETTER_WIDTH: u32 = 7;

/// Of the place that a group has, this share is left free beside its bars.
const GAP: f64 = 0.25;

/// Told apart without telling red from green, and in print by their lightness.
const COLOURS: [RGBColor; 5] = [
    RGBColor(31, 78, 121),
    RGBColor(230, 159, 0),
    RGBColor(120, 180, 220),
    RGBColor(110, 110, 110),
    RGBColor(200, 90, 120),
];

/// How far a value reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From zero.
    Linear,
    /// Each step ten times the one before. What is not above zero stands at the bottom.
    Logarithmic,
}

/// The bars of one colour: one for each label, missing where nothing was measured.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) values: Vec<Option<Spread>>,
}

/// Groups of bars.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    /// Of the file, without its ending.
    pub(crate) name: &'static str,
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) scale: Scale,
    /// One for each group.
    pub(crate) labels: Vec<String>,
    pub(crate) series: Vec<Series>,
}

impl Chart {
    /// Writes it into the directory, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be written there.
    pub(crate) fn save(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)
            .with_context(|| format!("could not make {}", directory.display()))?;
        let file = directory.join(format!("{}.svg", self.name));
        let svg = self
            .svg()
            .with_context(|| format!("could not draw {}", self.name))?;
        fs::write(&file, svg).with_context(|| format!("could not write {}", file.display()))
    }

    fn svg(&self) -> Result<String> {
        let mut text = String::new();
        // The library's error has the drawing's borrow in its type.
        self.draw(SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)))
            .map_err(|error| anyhow!("{error}"))?;
        text.push('\n');
        Ok(text)
    }

    fn draw(&self, backend: SVGBackend<'_>) -> Result<(), Box<dyn Error>> {
        let root = backend.into_drawing_area();
        root.fill(&WHITE)?;
        let (plot, legend) = root.split_horizontally(WIDTH - LEGEND_WIDTH);
        let axis = self.axis();
        let groups = self.labels.len().max(1);
        let group_width = (WIDTH - LEGEND_WIDTH - AXIS_WIDTH - 2 * MARGIN) / groups as u32;
        let labels: Vec<Vec<String>> = self
            .labels
            .iter()
            .map(|label| wrapped(label, (group_width / LETTER_WIDTH) as usize))
            .collect();
        let lines = labels.iter().map(Vec::len).max().unwrap_or_default() as u32;
        let mut chart = ChartBuilder::on(&plot)
            .caption(&self.title, (FONT, 17))
            .margin(MARGIN)
            .x_label_area_size(LINE_HEIGHT * (lines + 1))
            .y_label_area_size(AXIS_WIDTH)
            .build_cartesian_2d(0.0..groups as f64, axis.from..axis.to)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .y_labels(axis.labels)
            .y_max_light_lines(0)
            .y_desc(&self.unit)
            .y_label_formatter(&|place| tick(axis.value(*place), &axis))
            .label_style((FONT, 13))
            .draw()?;

        let width = (1.0 - GAP) / self.series.len().max(1) as f64;
        let series = || self.series.iter().zip(COLOURS.iter().cycle());
        for (place, (series, colour)) in series().enumerate() {
            let left = |group: usize| group as f64 + GAP / 2.0 + width * place as f64;
            let measured = || {
                let values = series.values.iter().enumerate();
                values.filter_map(|(group, value)| Some((group, (*value)?)))
            };
            chart.draw_series(measured().map(|(group, value)| {
                let corners = [
                    (left(group), axis.from),
                    (left(group) + width, axis.place(value.median)),
                ];
                Rectangle::new(corners, colour.filled())
            }))?;
            chart.draw_series(measured().map(|(group, value)| {
                let middle = left(group) + width / 2.0;
                let ends = vec![
                    (middle, axis.place(value.min)),
                    (middle, axis.place(value.max)),
                ];
                PathElement::new(ends, BLACK.stroke_width(2))
            }))?;
        }

        let centred = Pos::new(HPos::Center, VPos::Top);
        for (group, label) in labels.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(group as f64 + 0.5, axis.from));
            for (line, text) in (0..).zip(label) {
                let style = (FONT, 13).into_text_style(&root).pos(centred);
                let place = (x, y + 10 + line * LINE_HEIGHT as i32);
                root.draw(&Text::new(text.as_str(), place, style))?;
            }
        }
        for (place, (series, colour)) in (0..).zip(series()) {
            let y = 60 + 24 * place;
            legend.draw(&Rectangle::new([(0, y), (14, y + 14)], colour.filled()))?;
            let style = (FONT, 13).into_text_style(&legend);
            legend.draw(&Text::new(series.name.as_str(), (22, y + 1), style))?;
        }
        root.present()?;
        Ok(())
    }

    fn axis(&self) -> Axis {
        let values = self.series.iter().flat_map(|series| &series.values);
        let values: Vec<Spread> = values.copied().flatten().collect();
        let highest = values.iter().map(|value| value.max).fold(0.0, f64::max);
        match self.scale {
            Scale::Linear => Axis {
                scale: self.scale,
                from: 0.0,
                // Of nothing but zeros, too.
                to: if highest > 0.0 { highest * 1.05 } else { 1.0 },
                labels: 8,
            },
            Scale::Logarithmic => {
                let lowest = values
                    .iter()
                    .flat_map(|value| [value.min, value.median])
                    .filter(|value| *value > 0.0)
                    .fold(f64::INFINITY, f64::min);
                let from = if lowest.is_finite() {
                    lowest.log10().floor()
                } else {
                    0.0
                };
                let to = highest
                    .max(f64::MIN_POSITIVE)
                    .log10()
                    .ceil()
                    .max(from + 1.0);
                Axis {
                    scale: self.scale,
                    from,
                    to,
                    labels: (to - from) as usize + 1,
                }
            }
        }
    }
}

/// Where values stand.
#[derive(Clone, Copy, Debug)]
struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    labels: usize,
}

impl Axis {
    /// Nothing stands below the axis, not even what has no logarithm: the larger of a number and none is the number.
    fn place(&self, value: f64) -> f64 {
        let place = match self.scale {
            Scale::Linear => value,
            Scale::Logarithmic => value.log10(),
        };
        place.max(self.from)
    }

    fn value(&self, place: f64) -> f64 {
        match self.scale {
            Scale::Linear => place,
            Scale::Logarithmic => 10_f64.powf(place),
        }
    }
}

/// A text in lines of at most so many letters, but for single words that are longer.
fn wrapped(text: &str, letters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= letters => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A value at the axis, with as many digits as its neighbours need to differ.
fn tick(value: f64, axis: &Axis) -> String {
    let smallest = match axis.scale {
        Scale::Linear => (axis.to - axis.from) / 10.0,
        Scale::Logarithmic => value,
    };
    if smallest >= 1.0 {
        grouped(value)
    } else {
        let digits = (-smallest.log10()).ceil().clamp(0.0, 6.0) as usize;
        format!("{value:.digits$}")
    }
}

#[cfg(test)]
mod tests {
    use super::{Axis, Chart, HEIGHT, Scale, Series, tick, wrapped};
    use crate::statistics::Spread;

    fn chart(scale: Scale, values: [Option<Spread>; 4]) -> Chart {
        let [a, b, c, d] = values;
        let series = |name: &str, values| Series {
            name: name.to_owned(),
            values,
        };
        Chart {
            name: "chart",
            title: "Of \"these\" & <those>".to_owned(),
            unit: "µs".to_owned(),
            scale,
            labels: vec!["first & last".to_owned(), "second".to_owned()],
            series: vec![series("one", vec![a, b]), series("two", vec![c, d])],
        }
    }

    fn spread(median: f64) -> Option<Spread> {
        Spread::of([0.5 * median, median, 2.0 * median])
    }

    fn texts(svg: &str) -> Vec<String> {
        let document = roxmltree::Document::parse(svg).unwrap();
        let texts = document
            .descendants()
            .filter(|node| node.has_tag_name("text"));
        let text =
            |node: roxmltree::Node<'_, '_>| node.text().unwrap_or_default().trim().to_owned();
        texts.map(text).collect()
    }

    /// The heights of the bars: not of the background, nor of the legend's squares.
    fn bars(svg: &str) -> Vec<f64> {
        let document = roxmltree::Document::parse(svg).unwrap();
        let rectangles = document
            .descendants()
            .filter(|node| node.has_tag_name("rect"));
        let height = |node: roxmltree::Node<'_, '_>| node.attribute("height")?.parse().ok();
        rectangles
            .filter_map(height)
            .filter(|height| ![14.0, f64::from(HEIGHT)].contains(height))
            .collect()
    }

    #[test]
    fn a_chart_is_well_formed_svg_with_all_its_names() {
        for scale in [Scale::Linear, Scale::Logarithmic] {
            let values = [spread(1.0), spread(20.0), spread(300.0), None];
            let texts = texts(&chart(scale, values).svg().unwrap());
            for name in [
                "Of \"these\" & <those>",
                "µs",
                "first & last",
                "second",
                "one",
                "two",
            ] {
                assert!(texts.iter().any(|text| text == name), "{name}: {texts:?}");
            }
        }
    }

    #[test]
    fn each_value_that_is_there_has_a_bar() {
        let count = |values| bars(&chart(Scale::Linear, values).svg().unwrap()).len();
        let all = [spread(1.0), spread(2.0), spread(3.0), spread(4.0)];
        let [one, _, three, four] = all;
        assert_eq!(count(all), 4);
        assert_eq!(count([one, None, three, four]), 3);
    }

    #[test]
    fn what_is_zero_or_less_or_was_not_measured_has_no_height() {
        for scale in [Scale::Linear, Scale::Logarithmic] {
            let values = [spread(0.0), spread(-1.0), spread(5.0), spread(1e6)];
            let heights = bars(&chart(scale, values).svg().unwrap());
            let [zero, negative, small, large] = heights[..] else {
                panic!("{heights:?}");
            };
            assert!(zero <= 1.0 && negative <= 1.0, "{heights:?}");
            assert!(small < large && large > 100.0, "{heights:?}");
            assert!(bars(&chart(scale, [None; 4]).svg().unwrap()).is_empty());
        }
    }

    #[test]
    fn a_label_is_broken_between_words_only() {
        let label = "1,000,000 deleted, kept by a snapshot";
        assert_eq!(
            wrapped(label, 11),
            ["1,000,000", "deleted,", "kept by a", "snapshot"]
        );
        assert_eq!(wrapped("kept by", 7), ["kept by"]);
        assert_eq!(wrapped(label, 100), [label]);
        assert_eq!(wrapped("unbreakable words", 3), ["unbreakable", "words"]);
    }

    #[test]
    fn ticks_have_as_many_digits_as_they_need() {
        let axis = |scale, to| Axis {
            scale,
            from: 0.0,
            to,
            labels: 5,
        };
        assert_eq!(tick(40_000.0, &axis(Scale::Linear, 55_000.0)), "40,000");
        assert_eq!(tick(0.2, &axis(Scale::Linear, 1.05)), "0.2");
        assert_eq!(tick(0.01, &axis(Scale::Logarithmic, 3.0)), "0.01");
        assert_eq!(tick(1_000.0, &axis(Scale::Logarithmic, 3.0)), "1,000");
    }
}
