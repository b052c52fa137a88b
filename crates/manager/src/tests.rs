//! Managers in one thread: what users ask, what nodes ask, what a set of managers survives.

mod calls;
mod rig;
mod large;
mod sets;
mod streams;
