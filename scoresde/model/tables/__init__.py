"""Tables with columns of several kinds, as rows of real numbers and class labels.

`columns` says what a column is, `reading` takes columns from a user, `infer` finds their kinds,
`maps` has the changes of variables, `combinations` joins categories to class labels, and `schema`
puts all together.
"""
