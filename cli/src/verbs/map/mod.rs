//! `uzram map`: what the pages of a device hold, where they are on it.

mod canvas;
mod cells;
mod picture;

use std::path::Path;

use anyhow::Result;
use uzram::Links;

pub(crate) use self::cells::{Cells, Kind};
use crate::args::MapArgs;
use crate::base::failure::Usage;
use crate::base::output;
use crate::base::table::{bytes, count};
use crate::runtime::client;
use crate::runtime::rundir::RunRoot;
use crate::runtime::target;

/// Lines of a map in the terminal, and columns where the terminal's are not known.
const LINES: u64 = 16;
const COLUMNS: u16 = 80;

/// `uzram map`.
pub(crate) fn map(args: &MapArgs, root: &RunRoot) -> Result<()> {
    // Before the server is asked, since that is wrong on any machine.
    let form = args.file.as_deref().map(Form::of).transpose()?;
    let dir = target::find(&args.name, root)?;
    let mut client = client::connect_to_server(&dir)?;
    if args.json {
        return output::json(&Cells::fetch(&mut client, args.cells)?.as_json());
    }
    match (&args.file, form) {
        (Some(path), Some(form)) => {
            let cells = Cells::fetch(&mut client, picture::CELLS)?;
            let picture = match form {
                Form::Svg => picture::svg(dir.name().as_str(), &cells),
                Form::Png => picture::png(dir.name().as_str(), &cells)?,
            };
            Ok(uzram::write_whole(path, Links::Follow, &picture, 0o666)?)
        }
        _ => {
            let width = u64::from(terminal_width());
            let cells = Cells::fetch(&mut client, width * LINES)?;
            let colours = output::has_colours(&std::io::stdout());
            output::drawn(&in_text(dir.name().as_str(), &cells, width, colours))
        }
    }
}

/// What a file's name asks for.
enum Form {
    Svg,
    Png,
}

impl Form {
    fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|end| end.to_str()) {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => {
                let shown = path.display();
                Err(Usage::error(format!(
                    "{shown}: a map's file ends in .svg or .png"
                )))
            }
        }
    }
}

fn terminal_width() -> u16 {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    let columns = size.map_or(COLUMNS, |size| size.ws_col);
    if columns == 0 { COLUMNS } else { columns }
}

/// Lines of cells, each as what most of its pages hold, and a legend.
fn in_text(name: &str, cells: &Cells, width: u64, colours: bool) -> String {
    let mut text = format!("{name}, {}\n", bytes(cells.pages * uzram::PAGE_SIZE as u64));
    for line in cells.cells.chunks(width as usize) {
        text.extend(line.iter().map(|cell| mark(cells.kind_of(cell), colours)));
        text.push('\n');
    }
    for kind in Kind::ALL {
        let pages = count(cells.total(kind));
        text.push_str(&format!(
            "{} {}, {pages} pages\n",
            mark(kind, colours),
            kind.label()
        ));
    }
    text
}

fn mark(kind: Kind, colours: bool) -> String {
    if !colours {
        return kind.letter().to_string();
    }
    let [r, g, b] = kind.colour();
    format!("\x1b[38;2;{r};{g};{b}m█\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;
    use uzram::MapCell;

    #[test]
    fn a_line_is_as_wide_as_it_may_be() {
        let resident = MapCell {
            resident: 2,
            ..MapCell::default()
        };
        let cells = Cells {
            pages: 10,
            cells: vec![resident, MapCell::default(), resident, resident, resident],
        };
        let text = in_text("a", &cells, 4, false);
        assert!(
            text.starts_with("a, 40.0 KiB\nm.mm\nm\n. empty, 2 pages\n"),
            "{text}"
        );
        assert!(text.contains("m in memory, 8 pages\n"), "{text}");
        assert!(in_text("a", &cells, 4, true).contains("\x1b[38;2;"));
    }
}
