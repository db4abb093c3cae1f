package catalog

// DecodeOps reads what AppendOps wrote, and nothing else. The values of pairs alias b.
func DecodeOps(b []byte) ([]Op, error) { return nil, errSoon }

// DecodeQuery reads what AppendQuery wrote, and nothing else.
func DecodeQuery(b []byte) (Query, error) { return Query{}, errSoon }

// DecodeAnswer reads what AppendAnswer wrote, and nothing else.
func DecodeAnswer(b []byte) (Answer, error) { return Answer{}, errSoon }

// DecodeOutcome reads what AppendOutcome wrote, and nothing else.
func DecodeOutcome(b []byte) (Outcome, error) { return Outcome{}, errSoon }
