arrayMap(link -> toUInt64OrZero(link), splitByChar(',', {known:Literal}))
