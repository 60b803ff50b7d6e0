// Fetches the page's JSON. If the session has ended or the ledger cannot be read, the page says so in words.

export async function get(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return (await ask(`${path}?${new URLSearchParams(given)}`)).json();
}

export const post = (path) => ask(path, { method: "POST" });

async function ask(address, options = {}) {
  const answer = await fetch(address, { ...options, signal: AbortSignal.timeout(15_000) });
  if (answer.ok) return answer;
  if (answer.status === 401) throw new Error("Your session has ended: log in to Airflow again.");
  const body = await answer.json().catch(() => ({}));
  throw new Error(typeof body.detail === "string" ? body.detail : `The server answered ${answer.status}.`);
}
