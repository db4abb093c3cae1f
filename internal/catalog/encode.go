package catalog

// AppendOps appends the form of ops in the log.
func AppendOps(b []byte, ops []Op) []byte { return b }

// AppendQuery appends the form of q between agents.
func AppendQuery(b []byte, q Query) []byte { return b }

// AppendAnswer appends the form of a between agents.
func AppendAnswer(b []byte, a *Answer) []byte { return b }

// AppendOutcome appends the form of o between agents.
func AppendOutcome(b []byte, o *Outcome) []byte { return b }
