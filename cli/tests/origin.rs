//! `uzram serve --origin`: what becomes of the image, whatever becomes of the server.

#[path = "origin/client.rs"]
mod client;
mod common;
#[path = "origin/database.rs"]
mod database;
#[path = "origin/formats.rs"]
mod formats;
#[path = "common/full_pipe.rs"]
mod full_pipe;
#[path = "origin/holes.rs"]
mod holes;
#[path = "origin/image.rs"]
mod image;
#[path = "common/leaving.rs"]
mod leaving;
#[path = "origin/power_cut.rs"]
mod power_cut;
#[path = "origin/start.rs"]
mod start;
