from argosy.core.progress import Progress, seldom


def test_news_are_passed_on_now_and_then():
    time, heard = [10.0], []
    report = seldom(heard.append, 0.5, now=lambda: time[0])
    for at in (10.1, 10.4, 10.5, 10.6, 10.9, 11.2, 11.3):
        time[0] = at
        report(Progress(stage="compress", message=f"{at}"))
    assert [news.message for news in heard] == ["10.5", "11.2"]
