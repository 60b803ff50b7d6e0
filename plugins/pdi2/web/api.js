// Fetches the page's JSON. If nobody answers, the session has ended or the ledger cannot be read, it says so in words.

export async function get(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return (await ask(`${path}?${new URLSearchParams(given)}`)).json();
}

export const post = (path) => ask(path, { method: "POST" });

async function ask(address, options = {}) {
  const answer = await fetch(address, { ...options, signal: AbortSignal.timeout(15_000) }).catch(() => {
    throw new Error("Airflow's API server does not answer. A migration that is running goes on.");
  });
  if (answer.ok) return answer;
  if (answer.status === 401) throw new Error("Your session has ended: log in to Airflow again.");
  const { detail } = await answer.json().catch(() => ({}));
  if (answer.status === 403 && detail === "Forbidden") throw new Error("You need permission to read the runs of fill_person_distinct_id2, or, to act here, to trigger them.");
  throw new Error(typeof detail === "string" ? detail : `The server answered ${answer.status}.`);
}
