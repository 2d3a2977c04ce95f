//! Two things to draw rectangles and lines of text on.
//!
//! The crate svg would take the place of two format strings, and have the drawing in memory as a tree: a rectangle for each cell.

use std::fmt::Write;

use anyhow::Result;
use font8x8::UnicodeFonts;

/// The height of a line of text, pixels; each of its characters is half as wide.
pub(super) const TEXT: u32 = 16;

const BLACK: [u8; 3] = [30, 30, 30];

/// Places are pixels from the top left corner; what is outside is not drawn.
pub(super) trait Canvas {
    fn rectangle(&mut self, at: (u32, u32), size: (u32, u32), colour: [u8; 3]);

    /// A line of text, whose top left corner is `at`.
    fn text(&mut self, at: (u32, u32), text: &str);
}

/// A drawing as SVG.
pub(super) struct Svg(String);

impl Svg {
    pub(super) fn new((width, height): (u32, u32)) -> Self {
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"monospace\" font-size=\"13\" \
             shape-rendering=\"crispEdges\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
        ))
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.push_str("</svg>\n");
        self.0.into_bytes()
    }
}

impl Canvas for Svg {
    fn rectangle(&mut self, (x, y): (u32, u32), (width, height): (u32, u32), colour: [u8; 3]) {
        let [r, g, b] = colour;
        // A String takes all that is written to it.
        let _ = writeln!(
            self.0,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" \
             fill=\"#{r:02x}{g:02x}{b:02x}\"/>"
        );
    }

    fn text(&mut self, (x, y): (u32, u32), text: &str) {
        let baseline = y + TEXT - 4;
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(self.0, "<text x=\"{x}\" y=\"{baseline}\">{text}</text>");
    }
}

/// A drawing as pixels.
pub(super) struct Raster {
    width: u32,
    height: u32,
    /// Red, green, blue, row by row.
    pixels: Vec<u8>,
}

impl Raster {
    pub(super) fn new((width, height): (u32, u32)) -> Self {
        Self {
            width,
            height,
            pixels: vec![255; (width * height * 3) as usize],
        }
    }

    fn set(&mut self, x: u32, y: u32, colour: [u8; 3]) {
        if x < self.width && y < self.height {
            let at = ((y * self.width + x) * 3) as usize;
            self.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }

    /// As PNG.
    pub(super) fn finish(self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        writer.finish()?;
        Ok(bytes)
    }
}

impl Canvas for Raster {
    fn rectangle(&mut self, (x, y): (u32, u32), (width, height): (u32, u32), colour: [u8; 3]) {
        for row in y..y + height {
            for column in x..x + width {
                self.set(column, row, colour);
            }
        }
    }

    fn text(&mut self, (x, y): (u32, u32), text: &str) {
        for (number, character) in (0..).zip(text.chars()) {
            let glyph = font8x8::BASIC_FONTS.get(character).unwrap_or_default();
            for (row, bits) in (0..).zip(glyph) {
                for column in (0..8).filter(|column| bits >> column & 1 == 1) {
                    let at = (x + number * TEXT / 2 + column, y + 2 * row);
                    self.rectangle(at, (1, 2), BLACK);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_there_and_stays_inside() {
        let mut raster = Raster::new((40, 20));
        raster.rectangle((30, 10), (20, 20), [1, 2, 3]);
        raster.text((0, 0), "I");
        let bytes = raster.finish().unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes))
            .read_info()
            .unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let at = |x: usize, y: usize| &pixels[(y * 40 + x) * 3..][..3];
        assert_eq!(
            (at(39, 19), at(29, 10)),
            (&[1, 2, 3][..], &[255, 255, 255][..])
        );
        assert!(at(3, 4) == BLACK, "the stem of the I");
    }

    #[test]
    fn text_is_escaped() {
        let mut svg = Svg::new((9, 9));
        svg.text((0, 0), "a<b&c");
        let text = String::from_utf8(svg.finish()).unwrap();
        assert!(text.contains(">a&lt;b&amp;c</text>"), "{text}");
    }
}
