/** The page's side of the service worker: it starts it, and tells of a new build, which the owner may take. */

const SERVICE = "service.js";

/** `found` is told once a new build waits, with what takes it. Without service workers nothing is told. */
export async function watchBuild(found: (take: () => void) => void): Promise<void> {
  if (!("serviceWorker" in navigator)) return;
  const isFirst = navigator.serviceWorker.controller === null;
  let taken = false;
  navigator.serviceWorker.addEventListener("controllerchange", () => {
    if (taken) location.reload();
  });
  const registration = await navigator.serviceWorker.register(new URL(SERVICE, document.baseURI), { updateViaCache: "none" });
  const offer = (worker: ServiceWorker | null): void => {
    if (worker === null || isFirst) return;
    found(() => {
      taken = true;
      worker.postMessage("approve");
    });
  };
  offer(registration.waiting);
  registration.addEventListener("updatefound", () => {
    const coming = registration.installing;
    coming?.addEventListener("statechange", () => {
      if (coming.state === "installed") offer(coming);
    });
  });
}
