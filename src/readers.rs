//! Everyone who wants to be told of something, and what each has not read yet.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use futures::Stream;
use parking_lot::Mutex;

use crate::waker::{poll_locked, wake};

/// What is told.
pub(crate) trait ReaderNews: Clone {
    /// How many wait for a reader.
    const MOST: usize;

    /// Makes room for one more where so many wait; whether one is lost by that.
    fn make_room(unread: &mut VecDeque<Self>) -> bool;
}

/// A stream by its own name over a [`Reading`], whose `Debug` shows nothing of what is unread.
macro_rules! named {
    ($(#[$about:meta])* $name:ident of $news:ty) => {
        $(#[$about])*
        #[must_use = "streams do nothing unless polled"]
        #[pin_project::pin_project]
        pub struct $name(#[pin] $crate::readers::Reading<$news>);

        impl $name {
            pub(crate) fn of(reading: $crate::readers::Reading<$news>) -> Self {
                Self(reading)
            }
        }

        impl futures::Stream for $name {
            type Item = $news;

            fn poll_next(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<$news>> {
                self.project().0.poll_next(cx)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

pub(crate) use named;

/// Dropping it ends what they read; none any more once they were ended.
#[derive(Debug)]
pub(crate) struct Readers<T: ReaderNews>(Mutex<Option<Vec<Weak<UnreadNews<T>>>>>);

/// What is told from its beginning on. A stream.
#[derive(Debug)]
pub(crate) struct Reading<T>(Arc<UnreadNews<T>>);

#[derive(Debug)]
struct UnreadNews<T>(Mutex<State<T>>);

#[derive(Debug)]
struct State<T> {
    news: VecDeque<T>,
    /// How many were lost, since it lagged.
    lost: u64,
    ended: bool,
    waker: Option<Waker>,
}

impl<T: ReaderNews> Default for Readers<T> {
    fn default() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }
}

impl<T: ReaderNews> Readers<T> {
    /// How many were told, and how many of them lag so much that they lost an older one.
    pub(crate) fn tell(&self, news: &T) -> (usize, usize) {
        let (readers, mut lost) = (self.readers(), 0);
        for reader in &readers {
            reader.change(|unread| {
                if unread.news.len() == T::MOST {
                    let is_lost = T::make_room(&mut unread.news);
                    unread.lost += u64::from(is_lost);
                    lost += usize::from(is_lost);
                }
                unread.news.push_back(news.clone());
            });
        }
        (readers.len(), lost)
    }

    /// What is told from now on.
    pub(crate) fn read(&self) -> Reading<T> {
        let mut readers = self.0.lock();
        let reader = Arc::new(UnreadNews(Mutex::new(State {
            news: VecDeque::new(),
            lost: 0,
            ended: readers.is_none(),
            waker: None,
        })));
        let Some(readers) = &mut *readers else {
            return Reading(reader);
        };
        // Only before it would grow, so that many readers cost no square.
        if readers.len() == readers.capacity() {
            readers.retain(|reader| reader.strong_count() > 0);
        }
        readers.push(Arc::downgrade(&reader));
        Reading(reader)
    }

    /// Whether anybody reads.
    #[cfg(feature = "dashboard")]
    pub(crate) fn are_there(&self) -> bool {
        let readers = self.0.lock();
        let mut readers = readers.iter().flatten();
        readers.any(|reader| reader.strong_count() > 0)
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        let readers = self.0.lock().take().unwrap_or_default();
        for reader in readers.iter().filter_map(Weak::upgrade) {
            reader.change(|unread| unread.ended = true);
        }
    }

    fn readers(&self) -> Vec<Arc<UnreadNews<T>>> {
        let readers = self.0.lock();
        let readers = readers.iter().flatten();
        readers.filter_map(Weak::upgrade).collect()
    }
}

impl<T: ReaderNews> Drop for Readers<T> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<T> UnreadNews<T> {
    fn change(&self, change: impl FnOnce(&mut State<T>)) {
        let mut unread = self.0.lock();
        change(&mut unread);
        let waker = unread.waker.take();
        drop(unread);
        wake(waker);
    }
}

impl<T> Reading<T> {
    /// How many it has lost.
    pub(crate) fn lost(&self) -> u64 {
        self.0.0.lock().lost
    }
}

impl<T> Stream for Reading<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        poll_locked(
            &self.0.0,
            cx,
            |unread| &mut unread.waker,
            |unread| match (unread.news.pop_front(), unread.ended) {
                (None, false) => Poll::Pending,
                (news, _) => Poll::Ready(news),
            },
        )
    }
}
