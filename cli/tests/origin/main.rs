//! `uzram serve --origin`: what becomes of the image, whatever becomes of the server.

mod client;
mod database;
mod formats;
mod holes;
mod image;
mod power_cut;
mod start;
