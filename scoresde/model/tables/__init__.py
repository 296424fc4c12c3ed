"""Tables with columns of several kinds, as rows of real numbers and class labels.

`columns` says what a column is, `reading` takes columns from a user, `infer` finds their kinds,
`maps` has the changes of variables, `categories` joins categories to class labels (`combinations`
did so in earlier versions), and `schema` puts all together.
"""
