//! Tests that are the same for both databases.

/// Makes a test for each database of an `async fn(Place)`.
macro_rules! on_both {
    ($($test:ident,)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Place::sqlite()).await;
            })*
        }

        mod postgresql {
            $(#[tokio::test]
            async fn $test() {
                if let Some(place) = super::Place::postgres().await {
                    super::$test(place).await;
                }
            })*
        }
    };
}
pub(crate) use on_both;
