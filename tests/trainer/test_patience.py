from service.trainer.patience import Patience


def test_it_lasts_until_its_limit_after_the_first_of_those_that_come() -> None:
    patience = Patience(10.0)
    assert patience.lasts(1e9)
    for now_s in (5.0, 9.0, 14.0):
        patience.came(now_s)
    assert patience.lasts(14.9)
    assert not patience.lasts(15.0)


def test_it_begins_anew_with_the_first_that_comes_after_a_pause() -> None:
    patience = Patience(10.0)
    patience.came(0.0)
    patience.renew()
    patience.came(20.0)
    assert patience.lasts(29.0)
    assert not patience.lasts(30.0)
