//! Redis Cluster: how it is divided, as its nodes tell.

mod answer;
mod chart;
mod refresh;
mod view;
