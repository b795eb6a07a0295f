//! What became of what was published in parts.

use futures::future::join_all;

use crate::bus::{Later, Published};
use crate::model::error::PublishError;

/// Waits for all parts of what was published. One that failed fails all, and what the others did is not lost with it.
pub(super) async fn all_published(
    parts: Vec<impl Future<Output = Result<Published, PublishError>>>,
) -> Result<Published, PublishError> {
    let mut parts = join_all(parts).await.into_iter();
    let first = parts.next().unwrap_or(Ok(Published::default()));
    parts.fold(first, and)
}

fn and(
    all: Result<Published, PublishError>,
    part: Result<Published, PublishError>,
) -> Result<Published, PublishError> {
    match (all, part) {
        (Ok(all), Ok(part)) => Ok(together(all, part)),
        (Ok(_), Err(error)) | (Err(error), Ok(_)) => Err(PublishError {
            maybe_sent: true,
            ..error
        }),
        (Err(error), Err(other)) => Err(PublishError {
            maybe_sent: error.maybe_sent || other.maybe_sent,
            ..error
        }),
    }
}

fn together(mut all: Published, mut part: Published) -> Published {
    let (all_later, part_later) = (all.later.take(), part.later.take());
    if all_later.is_none() && part_later.is_none() {
        return Published {
            nodes: all.nodes + part.nodes,
            comes_back: all.comes_back || part.comes_back,
            // Each part has a clock of its own.
            mark: None,
            later: None,
        };
    }
    let later = async move {
        let all = at_last(all, all_later).await;
        and(all, at_last(part, part_later).await)
    };
    Published {
        later: Some(Later::new(later)),
        ..Published::default()
    }
}

async fn at_last(published: Published, later: Option<Later>) -> Result<Published, PublishError> {
    match later {
        Some(Later(later)) => later.await,
        None => Ok(published),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_failed_fails_all_and_says_what_may_be_sent() {
        let ok = || {
            Ok(Published {
                nodes: 2,
                ..Published::default()
            })
        };
        let failed = || Err(PublishError::not_sent("no"));
        let both = and(ok(), ok()).unwrap();
        assert_eq!((both.nodes, both.comes_back), (4, false));
        assert!(and(ok(), failed()).unwrap_err().maybe_sent);
        assert!(and(failed(), ok()).unwrap_err().maybe_sent);
        assert!(!and(failed(), failed()).unwrap_err().maybe_sent);
    }
}
