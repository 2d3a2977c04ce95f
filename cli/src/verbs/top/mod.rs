//! `uzram top`: the devices, live.
//!
//! `watch` asks the servers, `screen` draws what they said, with the table of `devices` at its head, and
//! this is the loop around both, at the `keyboard`.

mod devices;
mod keyboard;
mod screen;
mod watch;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};

use self::keyboard::Keyboard;
use self::watch::Watch;
use crate::args::TopArgs;
use crate::base::undo::Interrupt;
use crate::runtime::rundir::{RunDir, RunRoot};
use crate::runtime::target;

/// `uzram top`.
pub(crate) fn top(args: &TopArgs, root: &RunRoot) -> Result<()> {
    if !std::io::stdout().is_terminal() {
        bail!("top draws on a terminal; for figures use: uzram list --json");
    }
    let only = args
        .name
        .as_ref()
        .map(|name| target::find(name, root))
        .transpose()?;
    let mut watch = Watch::new(root, only.as_ref().map(RunDir::name))?;
    // A signal that ended us would leave the terminal as it is now.
    let interrupt = Interrupt::install()?;
    let mut terminal = ratatui::try_init()?;
    let ended = run(
        &mut terminal,
        &mut watch,
        Duration::from_secs(args.interval),
        &interrupt,
    );
    // What hung up cannot be restored.
    let restored = ratatui::try_restore();
    interrupt.check()?;
    restored?;
    ended
}

fn run(
    terminal: &mut DefaultTerminal,
    watch: &mut Watch,
    interval: Duration,
    interrupt: &Interrupt,
) -> Result<()> {
    let mut keyboard = Keyboard::open()?;
    let mut next = Instant::now() + interval;
    loop {
        let mut cells = 0;
        terminal.draw(|frame| cells = screen::draw(frame, watch))?;
        if watch.set_map_cells(cells) {
            // How large the map can be is known only now.
            continue;
        }
        match keyboard.next(next, interrupt)? {
            Some(event) if !handle(&event, watch) => return Ok(()),
            Some(_) => {}
            None => {
                watch.refresh()?;
                next = Instant::now() + interval;
            }
        }
    }
}

/// What an event asks for; false to end.
fn handle(event: &Event, watch: &mut Watch) -> bool {
    let Event::Key(key) = event else {
        return true;
    };
    if key.kind != KeyEventKind::Press {
        return true;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Down | KeyCode::Char('j') => watch.select_next(),
        KeyCode::Up | KeyCode::Char('k') => watch.select_previous(),
        _ => {}
    }
    true
}
