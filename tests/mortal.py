"""Ranks that die at a chosen moment while they change what all hold in common."""


class Dies(BaseException):
    """What ends such a rank."""


class Mortal:
    """To put before `Commons` or a class of its kind: dies at the `moment`-th of the moments it passes, from 0.

    Those are before and after a chunk is noted, and before and after it is changed, where then half of it is not.
    """

    moment = -1

    def pass_moment(self):
        self.moment -= 1
        if self.moment == -1:
            raise Dies

    def _note(self, part, chunk):
        self.pass_moment()
        super()._note(part, chunk)
        self.pass_moment()

    def _change(self, chunk, work):
        self.pass_moment()
        before = self.values.clone()
        values = super()._change(chunk, work)
        if self.moment == 0:
            half = slice(self._range(chunk).start + len(values) // 2, self._range(chunk).stop)
            self.values[half].copy_(before[half])
        self.pass_moment()
        return values
